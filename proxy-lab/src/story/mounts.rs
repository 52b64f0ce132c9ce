//! A mount, for which the kernel itself dials: by a socket of a worker that belongs to no pod and to no process, as NFS has
//! them. An errno that sunrpc does not know, like the EPERM of a refusing hook, would make it try for ever.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;
use proxy_common::Protocol;
use proxy_common::layout::FrontendKind;
use proxy_lab::plane::{Endpoints, Plane, options};
use proxy_lab::wait::until;
use proxy_lab::{Lab, PIN_PATH, cgroup};
use vipr::dataplane::{self, probe::Features};

use crate::story::acts::{self, EMPTY, WEB};

/// The act that serves every socket of the machine: the kernel's workers are in the root group.
const EVERYBODY: &str = "everybody";
/// The act that serves nobody any more.
const NOBODY: &str = "nobody";
/// The act of the file server.
const SERVER: &str = "server";
/// The act that mounts what is served.
const MOUNT: &str = "mount";
/// The act that mounts from where nobody serves.
const EMPTY_MOUNT: &str = "empty-mount";
/// What is mounted is served here.
const PORT: u16 = 2049;
/// And the endpoint listens here.
const TARGET: u16 = 12049;
/// The longest that anything takes.
const LIMIT: Duration = Duration::from_secs(60);
/// Of the program that tells where files are (RFC 1813 §5), and its procedure MNT.
const MOUNT_PROGRAM: u32 = 100_005;
const MNT: u32 = 1;
/// What the server answers to it: who gets this has been understood.
const ACCESS_DENIED: u32 = 13;

/// One of the acts, and what it said; `None`: it is another's.
pub(super) fn act(name: &str) -> Result<Option<String>> {
    let pins = format!("{PIN_PATH}-everybody");
    Ok(Some(match name {
        EVERYBODY => {
            let mut plane = Plane::open(&options(pins.as_ref(), &cgroup::mount_point()?), Features::probe())?;
            for (service, host) in (0..).zip(["10.244.1.12", "fd00:244:1::c"]) {
                let endpoint = SocketAddr::new(host.parse()?, TARGET);
                plane.endpoints(service, &Endpoints::everywhere(&[endpoint]))?;
                plane.endpoints(service + 2, &Endpoints::default())?;
                for (to, service) in [(WEB, service), (EMPTY, service + 2)] {
                    let to = at(to)?[(service % 2) as usize];
                    plane.frontend(to, Protocol::Tcp, FrontendKind::ClusterIp, service)?;
                }
            }
            plane.activate()?;
            String::new()
        }
        NOBODY => {
            dataplane::cleanup(pins.as_ref())?;
            String::new()
        }
        SERVER => serve()?,
        MOUNT => format!("{:?}", at(WEB)?.map(mounted)),
        EMPTY_MOUNT => format!("{:?}", at(EMPTY)?.map(mounted)),
        _ => return Ok(None),
    }))
}

fn at(web: [&str; 2]) -> Result<[SocketAddr; 2]> {
    let [v4, v6] = web.map(|to| to.parse().map(|to: SocketAddr| SocketAddr::new(to.ip(), PORT)));
    Ok([v4?, v6?])
}

/// What becomes of a mount from there, by options as mount.nfs gives them to the kernel.
fn mounted(from: SocketAddr) -> Option<Errno> {
    let (transport, ip) = if from.is_ipv4() { ("tcp", from.ip()) } else { ("tcp6", from.ip()) };
    let source = if from.is_ipv4() { format!("{ip}:/") } else { format!("[{ip}]:/") };
    let options = format!(
        "vers=3,proto={transport},port={PORT},mountproto={transport},mountvers=3,mountport={PORT},addr={ip},\
         mountaddr={ip},nolock,soft,timeo=50,retrans=1"
    );
    let folder = "/tmp/mounted";
    let _ = fs::create_dir(folder);
    mount(Some(source.as_str()), folder, Some("nfs"), MsFlags::empty(), Some(options.as_str())).err()
}

/// Answers until a mount of each family was asked for; says who asked.
fn serve() -> Result<String> {
    let listener = TcpListener::bind((IpAddr::from(Ipv6Addr::UNSPECIFIED), TARGET))?;
    setsockopt(&listener, ReceiveTimeout, &TimeVal::new(LIMIT.as_secs() as i64, 0))?;
    let mut clients = Vec::new();
    while clients.len() < 2 {
        let (stream, client) = listener.accept().context("waiting for a mount")?;
        stream.set_read_timeout(Some(LIMIT))?;
        // Who hangs up without a question is one who looks whether somebody is here.
        if answer(stream)? {
            clients.push(client.ip().to_canonical());
        }
    }
    Ok(format!("{clients:?}"))
}

/// Remote procedure calls (RFC 5531): all succeed. Whether a mount was among them.
fn answer(mut stream: TcpStream) -> Result<bool> {
    loop {
        let mut mark = [0; 4];
        if stream.read_exact(&mut mark).is_err() {
            return Ok(false);
        }
        let length = u32::from_be_bytes(mark) & 0x7fff_ffff;
        let mut call = vec![0; length as usize];
        stream.read_exact(&mut call)?;
        ensure!(call.len() >= 24, "a call of {} bytes", call.len());
        let word = |at: usize| u32::from_be_bytes([call[at], call[at + 1], call[at + 2], call[at + 3]]);
        let is_mount = word(12) == MOUNT_PROGRAM && word(20) == MNT;
        // Transaction, reply, accepted, no verifier, success.
        let mut reply = vec![word(0), 1, 0, 0, 0, 0];
        reply.extend(is_mount.then_some(ACCESS_DENIED));
        let mut bytes = (0x8000_0000 | 4 * reply.len() as u32).to_be_bytes().to_vec();
        bytes.extend(reply.iter().flat_map(|word| word.to_be_bytes()));
        stream.write_all(&bytes)?;
        if is_mount {
            return Ok(true);
        }
    }
}

/// The step of the story.
pub(super) fn mounts(lab: &Lab) -> Result<String> {
    let node = lab.node("a");
    acts::play(lab, EVERYBODY)?;
    let (said, served) = std::thread::scope(|scope| {
        let server = scope.spawn(|| acts::run(lab.place("a2"), SERVER));
        let to = SocketAddr::new("10.244.1.12".parse()?, TARGET);
        until("the file server listens", || Ok(node.connect(to, proxy_lab::Waiting::Blocking)?))?;
        let said = acts::run(node, MOUNT)?;
        let served = server.join().expect("the server does not panic")?;
        anyhow::Ok((said, served))
    })?;
    let denied = Some(Errno::EACCES);
    ensure!(said == format!("{:?}", [denied, denied]), "the server was not heard: {said}");
    ensure!(served.contains("192.168.77.11") || served.contains("10.244"), "the node asked: {served}");

    let start = Instant::now();
    let said = acts::run(node, EMPTY_MOUNT)?;
    let refused = Some(Errno::ECONNREFUSED);
    ensure!(said == format!("{:?}", [refused, refused]), "nobody serves: {said}");
    ensure!(start.elapsed() < LIMIT, "it was tried for {:?}", start.elapsed());
    acts::play(lab, NOBODY)?;
    Ok(format!("asked by {served}, refused after {} ms", start.elapsed().as_millis()))
}
