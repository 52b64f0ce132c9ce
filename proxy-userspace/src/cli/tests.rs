//! The command line as a whole: it is sound, and its page is fresh.

use std::fmt::Write;

use clap::{Command, CommandFactory, Parser};

use super::Cli;

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn a_form_that_is_none_is_a_wrong_command_line() {
    let error = Cli::try_parse_from(["vipr", "status", "-o", "yaml"]).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    let text = error.to_string();
    assert!(text.contains("invalid value 'yaml' for '--output <FORM>'"), "{text}");
    assert!(text.contains("[possible values: table, json]"), "{text}");
}

#[test]
fn a_cause_that_an_error_names_itself_is_told_once() {
    let source = std::io::Error::from_raw_os_error(libc::ENOENT);
    let error = crate::dataplane::Error::Kernel { what: "open the map x".into(), source };
    let error = anyhow::Error::from(error).context("prepare the tables");
    assert_eq!(
        super::causes(&error),
        "prepare the tables: open the map x: No such file or directory (os error 2)"
    );
}

#[test]
fn every_shell_has_completions_for_every_verb() {
    for shell in ["bash", "zsh", "fish"] {
        let cli = Cli::try_parse_from(["vipr", "completions", shell]).unwrap();
        let super::Verb::Completions(args) = cli.verb else { panic!("another verb") };
        let script = args.script();
        assert!(script.contains("status") && script.contains("cleanup"), "{shell}");
    }
}

/// `docs/cli.md`. The options of `run` have a page of their own.
fn markdown() -> String {
    let mut cli = Cli::command().term_width(100).disable_help_subcommand(true);
    cli.build();
    let mut text = String::from(
        "# Command line\n\n\
         <!-- Made from the help texts of proxy-userspace/src/cli: UPDATE_DOCS=1 cargo test -p proxy-userspace cli -->\n\n\
         Tables are for people; `-o json` is for programs, its names are stable. What `services`, `backends` and `status`\n\
         show is read from the pinned tables, so it is there whether or not an agent runs. `vipr run` takes the options of\n\
         [config.md](config.md).\n",
    );
    add(&mut text, "vipr", &mut cli.clone());
    for verb in cli.get_subcommands_mut().filter(|verb| !["run", "help"].contains(&verb.get_name())) {
        let name = format!("vipr {}", verb.get_name());
        add(&mut text, &name, verb);
    }
    text
}

fn add(text: &mut String, name: &str, command: &mut Command) {
    let help = command.render_long_help().to_string();
    let help: Vec<_> = help.lines().map(str::trim_end).collect();
    let _ = write!(text, "\n## {name}\n\n```text\n{}\n```\n", help.join("\n").trim());
}

#[test]
fn the_page_of_all_verbs_is_fresh() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cli.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, markdown()).unwrap();
    }
    let known = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(known, markdown(), "UPDATE_DOCS=1 writes it anew");
}
