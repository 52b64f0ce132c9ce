//! A catalogue is a YAML list of cases of one form. The form is told by the fields that its cases have.

mod flows;
mod selection;

use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;
use serde_yaml_ng::{Value, from_str, from_value};

/// How a catalogue went.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Cases, or flows of cases, that came out as expected.
    pub(crate) passed: usize,
    /// One line for each other one: its name, and what is different.
    pub(crate) failures: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `endpoints` and what is chosen of them.
    Selection,
    /// Whole `services` and packets to them.
    Flows,
}

/// Runs all cases of a catalogue.
pub(crate) fn run(text: &str) -> Result<Outcome> {
    let cases: Vec<Value> = from_str(text).context("no YAML list of cases")?;
    ensure!(!cases.is_empty(), "has no cases");
    let forms = cases.iter().map(form).collect::<Result<Vec<_>>>()?;
    let mixed = forms.iter().position(|form| *form != forms[0]);
    if let Some(other) = mixed {
        bail!("{} is of another form than {}", title(&cases[other]), title(&cases[0]));
    }
    match forms[0] {
        Form::Selection => each(cases, selection::run),
        Form::Flows => flows(cases),
    }
}

/// Runs a case at a time; `run` says what is different, if anything is.
fn each<T: DeserializeOwned>(cases: Vec<Value>, run: fn(T) -> Result<Option<String>>) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    for case in cases {
        let title = title(&case);
        let case = from_value(case).with_context(|| title.clone())?;
        match run(case).with_context(|| title.clone())? {
            None => outcome.passed += 1,
            Some(difference) => outcome.failures.push(format!("{title}: {difference}")),
        }
    }
    Ok(outcome)
}

/// Runs the flows of a case at a time.
fn flows(cases: Vec<Value>) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    for case in cases {
        let title = title(&case);
        let case = from_value(case).with_context(|| title.clone())?;
        flows::run(case, &title, &mut outcome).with_context(|| title.clone())?;
    }
    Ok(outcome)
}

fn form(case: &Value) -> Result<Form> {
    if case.get("flows").is_some() {
        return Ok(Form::Flows);
    }
    // A field of a zero value may be missing.
    let has = |field: &str| case.get(field).is_some();
    if has("expect") && (has("endpoints") || has("service")) {
        return Ok(Form::Selection);
    }
    bail!(
        "{} is of no known form: neither `service`, `endpoints` and `expect`, nor `services`, `endpoints` and `flows`",
        title(case)
    )
}

fn title(case: &Value) -> String {
    match case.get("name").and_then(Value::as_str) {
        Some(name) => name.replace('\n', " "),
        None => "a case without a name".into(),
    }
}
