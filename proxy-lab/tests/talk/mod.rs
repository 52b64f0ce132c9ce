//! Somebody who never stops talking to a Service, in every way that a client has, and writes down what he misses.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxy_lab::{Answer, Datagrams, Family, Load, Place, Stream, Waiting, wait};

/// New connections a second.
const RATE: u32 = 20;
/// Between two rounds: many a second, and time for others.
const PAUSE: Duration = Duration::from_millis(20);

/// One place that talks to one address.
#[derive(Debug)]
pub(crate) struct Talk {
    name: String,
    to: SocketAddr,
    /// Long-lived, and silent but for [`Talk::break_silence`].
    quiet: Stream,
    load: Load,
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    rounds: AtomicU64,
    missed: Mutex<BTreeSet<String>>,
    /// Who has ever answered on the long-lived stream, and on the connected socket.
    partners: [Mutex<BTreeSet<String>>; 2],
}

impl Talk {
    /// Begins with a long-lived connection, a connected and an unconnected datagram socket, and new connections.
    pub(crate) fn start(place: &Place, to: SocketAddr) -> Result<Self> {
        let name = format!("{} to {to}", place.name());
        let mut quiet = place.connect(to, Waiting::Blocking).with_context(|| name.clone())?;
        quiet.answer()?;
        let mut stream = place.connect(to, Waiting::Blocking).with_context(|| name.clone())?;
        let who = stream.answer()?.who;
        let (connected, unconnected) =
            (place.datagrams(Family::of(to.ip()))?, place.datagrams(Family::of(to.ip()))?);
        connected.connect(to)?;
        let shared = Arc::new(Shared::default());
        shared.met(0, who);
        let load = Load::start(place, to, RATE);
        let own = Arc::clone(&shared);
        let thread = std::thread::spawn(move || own.talk(to, stream, &connected, &unconnected));
        Ok(Self { name, to, quiet, load, shared, thread })
    }

    /// How many of its connections a proxy that does not serve at the socket has to remember: two streams and two datagram sockets.
    pub(crate) const LASTING: u64 = 4;

    /// The silent connection still leads somewhere.
    pub(crate) fn break_silence(&mut self) -> Result<()> {
        let answer =
            self.quiet.ask("still there").with_context(|| format!("{}: quiet for long", self.name))?;
        ensure!(answer.said == "still there", "{}: {answer:?}", self.name);
        Ok(())
    }

    /// Where it will be after this many more rounds, and as many connections.
    pub(crate) fn goal(&self, rounds: u64) -> [u64; 2] {
        self.done().map(|done| done + rounds)
    }

    /// Waits until it is there.
    pub(crate) fn reaches(&self, goal: [u64; 2]) -> Result<()> {
        wait::until(&format!("{} goes on talking", self.name), || {
            let done = self.done();
            ensure!(done >= goal && done[1] >= goal[1], "{done:?} of {goal:?} rounds and connections");
            Ok(())
        })
    }

    fn done(&self) -> [u64; 2] {
        [self.shared.rounds.load(Ordering::Relaxed), self.load.answered()]
    }

    /// Ends it: nothing was missed, no answer came from elsewhere, and what lasted was with the same one all the time.
    pub(crate) fn nothing_was_missed(self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        // A panic was printed by the thread.
        let _ = self.thread.join();
        let missed = self.shared.missed.lock().unwrap_or_else(PoisonError::into_inner);
        let tally = self.load.stop();
        println!(
            "{}: {} rounds, {} connections",
            self.name,
            self.shared.rounds.load(Ordering::Relaxed),
            tally.answers()
        );
        ensure!(missed.is_empty(), "{}: {missed:?}", self.name);
        ensure!(tally.failures() == 0, "{}: connections lost: {:?}", self.name, tally.failed);
        for (partners, what) in self.shared.partners.iter().zip(["stream", "connected datagrams"]) {
            let partners = partners.lock().unwrap_or_else(PoisonError::into_inner);
            ensure!(partners.len() == 1, "{}: {what} of {} went to {partners:?}", self.name, self.to);
        }
        Ok(())
    }
}

impl Shared {
    fn talk(&self, to: SocketAddr, mut stream: Stream, connected: &Datagrams, unconnected: &Datagrams) {
        while !self.stop.load(Ordering::Relaxed) {
            let round = self.rounds.load(Ordering::Relaxed);
            let said = |what: &str| format!("{what} {round}");
            let streamed = stream.ask(&said("stream")).map(|answer| (answer, to));
            self.note(to, &said("stream"), streamed, Some(0));
            self.note(to, &said("connected"), connected.ask(&said("connected")), Some(1));
            self.note(to, &said("unconnected"), unconnected.ask_to(to, &said("unconnected")), None);
            self.rounds.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(PAUSE);
        }
    }

    fn note(
        &self,
        to: SocketAddr,
        said: &str,
        heard: std::io::Result<(Answer, SocketAddr)>,
        partner: Option<usize>,
    ) {
        match heard {
            Ok((answer, from)) if from == to && answer.said == said => {
                if let Some(partner) = partner {
                    self.met(partner, answer.who);
                }
            }
            heard => {
                self.missed
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(format!("{said}: {heard:?}"));
            }
        }
    }

    fn met(&self, partner: usize, who: String) {
        self.partners[partner].lock().unwrap_or_else(PoisonError::into_inner).insert(who);
    }
}
