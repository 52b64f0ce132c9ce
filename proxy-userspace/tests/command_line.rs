//! The binary as a shell sees it: exit codes, what is on which stream, and readers that go away.

use std::process::{Command, Output, Stdio};

fn vipr(line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vipr"));
    command.args(line.split(' ')).env_remove("VIPR_PIN_PATH").env_remove("VIPR_RUN_PATH");
    command
}

fn output(line: &str) -> Output {
    vipr(line).output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

#[test]
fn an_answer_is_on_standard_output_and_the_code_is_0() {
    let version = output("version -o json");
    assert_eq!((version.status.code(), text(&version.stderr)), (Some(0), ""));
    let json: serde_json::Value = serde_json::from_slice(&version.stdout).expect("JSON");
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(json["layoutVersion"], proxy_common::names::LAYOUT_VERSION);
}

#[test]
fn what_fails_says_why_on_standard_error_and_the_code_is_1() {
    for verb in [
        "status --run-path /nowhere/run",
        "services",
        "backends",
        "flows",
        "explain --from pod --to 10.0.0.1:80",
    ] {
        let failed = output(&format!("{verb} --pin-path /nowhere/vipr"));
        assert_eq!((failed.status.code(), text(&failed.stdout)), (Some(1), ""), "{verb}");
        let error = text(&failed.stderr);
        assert!(error.starts_with("Error: ") && error.contains("/nowhere/vipr"), "{verb}: {error}");
        assert_eq!(error.lines().count(), 1, "{verb}: {error}");
    }
}

#[test]
fn a_wrong_command_line_is_code_2() {
    for line in
        ["statsu", "status --pin-path", "services -o xml", "explain --to 10.0.0.1:80", "run --no-such-flag"]
    {
        assert_eq!(output(line).status.code(), Some(2), "{line}");
    }
}

#[test]
fn a_reader_that_goes_away_is_neither_a_panic_nor_an_error() {
    for line in ["completions zsh", "version", "--help", "status --help"] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let child = vipr(line).stdout(writer).stderr(Stdio::piped()).spawn().expect("the binary runs");
        let ended = child.wait_with_output().expect("it ends");
        assert_eq!((ended.status.code(), text(&ended.stderr)), (Some(0), ""), "{line}");
    }
}

#[test]
fn an_error_that_nobody_reads_is_still_the_code() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let status = vipr("services --pin-path /nowhere/vipr").stderr(writer).status().expect("the binary runs");
    assert_eq!(status.code(), Some(1));
}

#[test]
fn nothing_to_clean_up_is_done() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().display();
    let done = output(&format!("cleanup --pin-path {path}/pins --run-path {path}/run"));
    assert_eq!(text(&done.stderr), "");
    assert_eq!(text(&done.stdout), format!("nothing of vipr was in {path}/pins\n"));
    assert_eq!(done.status.code(), Some(0));
    assert!(!folder.path().join("run").exists());
}
