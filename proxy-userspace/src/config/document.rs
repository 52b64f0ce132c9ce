//! What is made from the table of knobs for others to read: `docs/config.md`, and KubeProxyConfiguration as it is in
//! effect.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::{
    knobs::{ALIASES, KNOBS, Kind, Knob, Role},
    values::Values,
};

/// `docs/config.md`.
pub fn markdown() -> String {
    let mut text = String::from(
        "# Configuration of `vipr run`\n\n\
         <!-- Made from proxy-userspace/src/config/knobs.rs: UPDATE_DOCS=1 cargo test -p proxy-userspace config -->\n\n\
         A value comes from a flag, else from the environment (`VIPR_` and the flag in capitals: `--pin-path` is\n\
         `VIPR_PIN_PATH`), else from its default. Lists have commas, durations are like `1h30m`.\n\n\
         `--config FILE` reads a KubeProxyConfiguration (`kubeproxy.config.k8s.io/v1alpha1`). As in kube-proxy the flags of\n\
         the second table are then ignored, with a warning that names the field to write. A field that is unknown, stands\n\
         twice, or has no effect is named in a warning and never fatal; a bad value is an error that names it. An empty\n\
         value in the file is unset.\n",
    );
    for (role, title) in [
        (Role::Overrides, "Flags that also override the file"),
        (Role::Used, "kube-proxy's options"),
        (Role::Ignored, "kube-proxy's options that are taken without effect"),
    ] {
        let _ = write!(text, "\n## {title}\n\n| flag | field | value | default | |\n|---|---|---|---|---|\n");
        for knob in KNOBS.iter().filter(|knob| knob.role == role) {
            let flag = match knob.flag {
                "" => String::new(),
                "v" => "`-v`".into(),
                flag => format!("`--{flag}`"),
            };
            let alias = ALIASES.iter().find(|(flag, _)| !flag.is_empty() && *flag == knob.flag);
            let flag = alias.map_or(flag.clone(), |(_, alias)| format!("{flag}, `--{alias}`"));
            let (field, default) = (code(knob.field), code(knob.default));
            let help = knob.help.replace('|', "\\|");
            let _ = writeln!(text, "| {flag} | {field} | {} | {default} | {help} |", form(knob.kind));
        }
    }
    text
}

fn code(text: &str) -> String {
    match text {
        "" => String::new(),
        group if group.ends_with('.') => format!("`{group}*`"),
        text => format!("`{text}`"),
    }
}

fn form(kind: Kind) -> String {
    match kind {
        Kind::Text => "text".into(),
        Kind::Switch => "true, false".into(),
        Kind::Number(low, i64::MAX) => format!("number from {low}"),
        Kind::Number(low, high) => format!("{low} to {high}"),
        Kind::Duration => "duration".into(),
        Kind::List => "list".into(),
        Kind::Choice(choices) => choices.join(", "),
        Kind::Gates => "`name=bool` list".into(),
        Kind::Ip => "IP address".into(),
        Kind::Listen => "IP:port".into(),
        Kind::Any => "not looked at".into(),
    }
}

/// KubeProxyConfiguration v1alpha1 with every field that there is a knob for.
pub(super) fn effective(values: &Values) -> Value {
    let mut root = Map::new();
    root.insert("apiVersion".into(), "kubeproxy.config.k8s.io/v1alpha1".into());
    root.insert("kind".into(), "KubeProxyConfiguration".into());
    for knob in KNOBS.iter().filter(|knob| !knob.field.is_empty() && !knob.field.ends_with('.')) {
        let mut object = &mut root;
        let mut path = knob.field.split('.').peekable();
        while let Some(part) = path.next() {
            if path.peek().is_none() {
                object.insert(part.into(), typed(knob, values));
            } else {
                let below = object.entry(part).or_insert_with(|| json!({}));
                let Value::Object(below) = below else { break };
                object = below;
            }
        }
    }
    Value::Object(root)
}

/// Every flag by its name, with the value in effect; empty: unset.
pub(super) fn flags(values: &Values) -> Vec<(&'static str, String)> {
    let with_flag = KNOBS.iter().filter(|knob| !knob.flag.is_empty());
    let value = |knob: &Knob| values.text(knob.key()).unwrap_or_default();
    let mut flags: Vec<_> = with_flag.map(|knob| (knob.flag, value(knob))).collect();
    flags.sort_unstable();
    flags
}

fn typed(knob: &Knob, values: &Values) -> Value {
    let key = knob.key();
    let text = || Value::String(values.text(key).unwrap_or_default());
    match knob.kind {
        Kind::Switch => values.switch(key).map_or_else(|_| text(), Value::Bool),
        Kind::Number(..) => values.number(key).map_or_else(|_| text(), Value::from),
        Kind::List if knob.field == "clusterCIDR" => text(),
        Kind::List if values.given(key).is_none() => Value::Null,
        Kind::List => values.list(key).into(),
        Kind::Gates => json!(values.gates(key).unwrap_or_default()),
        Kind::Any if knob.field.ends_with("qps") => {
            text().as_str().and_then(|qps| qps.parse::<f64>().ok()).into()
        }
        _ => text(),
    }
}
