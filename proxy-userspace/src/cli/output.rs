//! What all verbs share: where the pins are, the form of the answer, and a standard output that may be closed.

use std::{
    io::{self, ErrorKind, Write},
    path::PathBuf,
};

use anyhow::{Context, Result};
use clap::ValueEnum;
use proxy_common::names;
use serde::Serialize;

/// Where the pins are.
#[derive(Debug, clap::Args)]
pub struct Pins {
    /// Directory of the pins
    #[arg(long, value_name = "DIRECTORY", env = "VIPR_PIN_PATH", hide_env_values = true, default_value = names::PIN_PATH)]
    pub pin_path: PathBuf,
}

/// Where the agent's lock and socket are.
#[derive(Debug, clap::Args)]
pub struct Run {
    /// Directory of the agent's lock and socket
    #[arg(
        long,
        value_name = "DIRECTORY",
        env = "VIPR_RUN_PATH",
        hide_env_values = true,
        default_value = "/run/vipr"
    )]
    pub run_path: PathBuf,
}

/// The form of the answer.
#[derive(Debug, clap::Args)]
pub struct Output {
    /// Form of the answer
    #[arg(short, long, value_enum, value_name = "FORM", default_value_t = Form::Table)]
    output: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people.
    Table,
    /// For programs; names are stable.
    Json,
}

impl Output {
    /// Answer with `value`, or with its text for people.
    pub fn answer<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
        match self.output {
            Form::Table => say(&text(value)),
            Form::Json => say(&(serde_json::to_string_pretty(value).context("write JSON")? + "\n")),
        }
    }
}

/// Write to standard output. A reader that has gone away (`vipr services | head`) has read enough.
pub fn say(text: &str) -> Result<()> {
    say_to(&mut io::stdout().lock(), text)
}

fn say_to(out: &mut impl Write, text: &str) -> Result<()> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("write to standard output"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Closed(ErrorKind);

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_has_gone_is_no_error_but_a_full_disk_is() {
        assert!(say_to(&mut Closed(ErrorKind::BrokenPipe), "x").is_ok());
        let error = say_to(&mut Closed(ErrorKind::StorageFull), "x").unwrap_err();
        assert_eq!(format!("{error:#}"), "write to standard output: no storage space");
    }
}
