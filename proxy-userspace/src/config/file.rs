//! KubeProxyConfiguration v1alpha1: read leniently, as kube-proxy does (spec §3.1), with a warning for each field that is
//! unknown or stands twice.

use std::fmt;

use anyhow::{Context, Result, bail};
use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};

use super::{
    knobs::{KNOBS, Kind},
    values::{Given, Origin, Values},
};

/// The values of a file, and what was odd about it.
pub(super) fn read(text: &str) -> Result<(Values, Vec<String>)> {
    let mut documents = serde_yaml_ng::Deserializer::from_str(text);
    let document = documents.next().context("the configuration file is empty")?;
    let tree = Tree::deserialize(document).context("the configuration file is no YAML")?;
    let Tree::Map(entries) = tree else { bail!("the configuration file holds no object") };
    let mut values = Values::default();
    let mut warnings = Vec::new();
    let mut header = (None, None);
    let mut leaves = Vec::new();
    flatten("", entries, &mut leaves, &mut warnings);
    for (path, texts) in leaves {
        match path.as_str() {
            "apiVersion" => header.0 = texts.into_iter().next(),
            "kind" => header.1 = texts.into_iter().next(),
            _ => take(path, texts, &mut values, &mut warnings),
        }
    }
    match (header.0.as_deref(), header.1.as_deref()) {
        (Some("kubeproxy.config.k8s.io/v1alpha1"), Some("KubeProxyConfiguration")) => Ok((values, warnings)),
        (version, kind) => bail!(
            "the configuration file has apiVersion {:?} and kind {:?}: write `apiVersion: kubeproxy.config.k8s.io/v1alpha1` \
             and `kind: KubeProxyConfiguration`",
            version.unwrap_or(""),
            kind.unwrap_or("")
        ),
    }
}

fn take(path: String, texts: Vec<String>, values: &mut Values, warnings: &mut Vec<String>) {
    let whole = |field: &str| {
        field.strip_suffix('.').is_some_and(|group| {
            path.strip_prefix(group).is_some_and(|rest| rest.starts_with('.') || rest.is_empty())
        })
    };
    let Some(knob) =
        KNOBS.iter().find(|knob| !knob.field.is_empty() && (knob.field == path || whole(knob.field)))
    else {
        warnings.push(format!(
            "{path} in the configuration file is no field of KubeProxyConfiguration: it is ignored"
        ));
        return;
    };
    // Empty is unset: kubeadm writes every field.
    if texts.iter().all(String::is_empty) {
        return;
    }
    if values.given(knob.key()).is_some() && !knob.field.ends_with('.') && knob.kind != Kind::Gates {
        warnings.push(format!("{path} stands twice in the configuration file: the last one counts"));
    }
    values.0.insert(knob.key(), Given { texts, origin: Origin::Field(path) });
}

/// Paths with the texts that stand there; null and empty maps are left out.
fn flatten(
    prefix: &str,
    entries: Vec<(String, Tree)>,
    leaves: &mut Vec<(String, Vec<String>)>,
    warnings: &mut Vec<String>,
) {
    for (key, tree) in entries {
        let path = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
        match tree {
            Tree::Null => {}
            Tree::Scalar(text) => leaves.push((path, vec![text])),
            Tree::List(items) => {
                let mut texts = Vec::new();
                for item in items {
                    match item {
                        Tree::Scalar(text) => texts.push(text),
                        _ => warnings.push(format!(
                            "{path} in the configuration file: an entry that is no text is ignored"
                        )),
                    }
                }
                leaves.push((path, texts));
            }
            Tree::Map(entries) if path == "featureGates" => {
                let pairs = entries.into_iter().filter_map(|(name, on)| match on {
                    Tree::Scalar(on) => Some(format!("{name}={on}")),
                    _ => None,
                });
                leaves.push((path, pairs.collect()));
            }
            Tree::Map(entries) => flatten(&path, entries, leaves, warnings),
        }
    }
}

/// YAML that remembers what stands twice.
enum Tree {
    Null,
    Scalar(String),
    List(Vec<Tree>),
    Map(Vec<(String, Tree)>),
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("YAML")
    }

    fn visit_unit<E: Error>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.to_string()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.to_string()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.to_string()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.to_string()))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Tree, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Tree::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Tree, A::Error> {
        let mut map = Vec::new();
        while let Some(Key(key)) = entries.next_key()? {
            map.push((key, entries.next_value()?));
        }
        Ok(Tree::Map(map))
    }
}

/// A key may look like a number or a truth.
struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Tree::deserialize(deserializer)? {
            Tree::Scalar(text) => Ok(Self(text)),
            Tree::Null => Ok(Self("null".into())),
            _ => Err(D::Error::custom("a key is no text")),
        }
    }
}
