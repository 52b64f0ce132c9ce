//! Asks the agent, if one runs, on its Unix socket.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::report::Report;

/// An agent answers from memory: one that takes longer is stuck.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the agent says about itself.
pub(super) fn report(socket: &Path) -> Result<Report> {
    let body = get(socket, "/report").with_context(|| format!("ask on {}", socket.display()))?;
    serde_json::from_slice(&body).context("the agent's answer is of another version")
}

/// One question. By HTTP/1.0, so that the body ends with the connection and never comes in chunks.
fn get(socket: &Path, path: &str) -> Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: vipr\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").context("no HTTP answer")?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.split(' ').nth(1) == Some("200"), "{path} is answered with {status:?}");
    Ok(answer.split_off(end + 4))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        os::unix::net::UnixListener,
    };

    use super::*;

    fn answered(answer: &'static str) -> Result<Vec<u8>> {
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("agent.sock");
        let listener = UnixListener::bind(&socket)?;
        let agent = std::thread::spawn(move || -> std::io::Result<()> {
            let (mut stream, _) = listener.accept()?;
            let asked = BufReader::new(stream.try_clone()?).lines();
            asked.map_while(Result::ok).find(|line| line.is_empty());
            stream.write_all(answer.as_bytes())
        });
        let body = get(&socket, "/report");
        agent.join().expect("the agent")?;
        body
    }

    #[test]
    fn the_body_is_what_follows_the_head() {
        let body = answered("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}").unwrap();
        assert_eq!(body, b"{}");
    }

    #[test]
    fn another_status_and_no_http_at_all_are_errors() {
        let error = answered("HTTP/1.0 404 Not Found\r\n\r\n").unwrap_err();
        assert_eq!(error.to_string(), "/report is answered with \"HTTP/1.0 404 Not Found\"");
        assert_eq!(answered("hello").unwrap_err().to_string(), "no HTTP answer");
    }
}
