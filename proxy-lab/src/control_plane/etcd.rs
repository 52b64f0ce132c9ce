//! etcd: started beside the API server, and compacted on request.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns};

use super::process::Process;

/// Loopback of the control plane's network namespace.
const ADDRESS: &str = "127.0.0.1:2379";
pub(super) const CLIENT_URL: &str = "http://127.0.0.1:2379";
const PEER_URL: &str = "http://127.0.0.1:2380";

pub(super) fn spawn(netns: &Path, folder: &Path) -> Result<Process> {
    let arguments = [
        "--name=lab".into(),
        format!("--data-dir={}", folder.join("etcd").display()),
        format!("--listen-client-urls={CLIENT_URL}"),
        format!("--advertise-client-urls={CLIENT_URL}"),
        format!("--listen-peer-urls={PEER_URL}"),
        format!("--initial-advertise-peer-urls={PEER_URL}"),
        format!("--initial-cluster=lab={PEER_URL}"),
        // Nothing here has to survive a power cut.
        "--unsafe-no-fsync".into(),
    ];
    Process::spawn("etcd", netns, &arguments, &folder.join("etcd.log"))
}

/// Compacts at the present revision, through etcd's JSON gateway (`/v3/kv/compaction`).
pub(super) fn compact(netns: &Path) -> Result<()> {
    let answer = post(netns, "/v3/kv/range", r#"{"key": "AA=="}"#)?;
    let revision = answer["header"]["revision"].as_str().context("etcd named no revision")?.to_owned();
    post(netns, "/v3/kv/compaction", &format!(r#"{{"revision": "{revision}", "physical": true}}"#))?;
    Ok(())
}

/// One HTTP request from inside the namespace. A thread of its own enters it and ends.
fn post(netns: &Path, path: &str, body: &str) -> Result<serde_json::Value> {
    let namespace = std::fs::File::open(netns).with_context(|| format!("opening {}", netns.display()))?;
    // HTTP/1.0: the answer ends where the connection does, unchunked.
    let request = format!(
        "POST {path} HTTP/1.0\r\nHost: {ADDRESS}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let exchange = move || -> Result<String> {
        setns(namespace, CloneFlags::CLONE_NEWNET)
            .context("entering the control plane's network namespace")?;
        let mut stream = TcpStream::connect(ADDRESS).context("connecting to etcd")?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer =
        thread::spawn(exchange).join().map_err(|_| anyhow!("the thread that asks etcd panicked"))??;
    let (head, body) = answer.split_once("\r\n\r\n").context("etcd answered no HTTP")?;
    ensure!(head.lines().next().is_some_and(|line| line.contains(" 200 ")), "etcd refused {path}: {answer}");
    serde_json::from_str(body).with_context(|| format!("etcd's answer to {path}: {body}"))
}
