//! Where the agent finds the API server, which no Service may claim (CVE-2020-8554): the addresses of its name, looked up
//! again as long as the agent runs, since each new connection of it goes to those of that moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};

use tokio::{net::lookup_host, sync::mpsc::Sender, time};

use super::configuration;
use crate::{
    model::{Change, Source},
    watch::{Event, What},
};

/// How long the name may take to resolve.
const LIMIT: Duration = Duration::from_secs(2);
/// How often it is looked up: thousands of nodes ask the cluster's servers of names.
const PAUSE: Duration = Duration::from_secs(30);
/// How long an address counts that the name was seen to have: some servers of names tell of a few of many, by turns, and
/// connections to it may stand.
const KEPT: Duration = Duration::from_secs(600);

/// A name, or an address, and what it was seen to stand for.
#[derive(Debug)]
pub struct Servers {
    host: String,
    port: u16,
    /// When the name was last seen to have each.
    seen: BTreeMap<SocketAddr, Instant>,
}

impl Servers {
    /// Those of [`super::client`]'s; `None` if there is no configuration, which that tells.
    pub async fn new(kubeconfig: Option<&Path>, url: Option<&str>) -> Option<Self> {
        let url = configuration(kubeconfig, url).await.ok()?.cluster_url;
        let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("http") { 80 } else { 443 });
        let host = url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        Some(Self { host, port, seen: BTreeMap::new() })
    }

    /// Whether there may be others at another time.
    pub fn may_move(&self) -> bool {
        self.host.parse::<IpAddr>().is_err()
    }

    /// All that count now.
    pub fn known(&self) -> BTreeSet<SocketAddr> {
        self.seen.keys().copied().collect()
    }

    /// Looks them up, and gives what there is to say of it.
    pub async fn look_up(&mut self) -> What {
        let found = match time::timeout(LIMIT, lookup_host((self.host.as_str(), self.port))).await {
            Ok(Ok(found)) => Ok(found.collect()),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        self.found(found, Instant::now())
    }

    /// Looks them up from time to time until nobody listens.
    pub async fn follow(mut self, to: Sender<Event>) {
        if !self.may_move() {
            return to.closed().await;
        }
        let mut what = if self.seen.is_empty() { self.look_up().await } else { self.change() };
        while to.send(Event::now(Source::ApiServers, what)).await.is_ok() {
            tokio::select! {
                () = to.closed() => return,
                () = time::sleep(PAUSE) => what = self.look_up().await,
            }
        }
    }

    fn change(&self) -> What {
        What::Change { change: Change::ApiServers(self.known()), trigger: None }
    }

    fn found(&mut self, found: io::Result<BTreeSet<SocketAddr>>, now: Instant) -> What {
        let before = self.known();
        match found {
            Ok(found) if found.is_empty() => self.broken("it has no address"),
            Err(error) => self.broken(&error.to_string()),
            Ok(found) => {
                self.seen.retain(|_, seen| now.duration_since(*seen) < KEPT);
                self.seen.extend(found.into_iter().map(|address| (address, now)));
                if self.known() == before { What::Alive } else { self.change() }
            }
        }
    }

    /// What was known stays.
    fn broken(&self, why: &str) -> What {
        let why = format!("the API server's name {:?} can't be resolved: {why}", self.host);
        if self.seen.is_empty() {
            return What::Broken {
                why: format!("{why}; its address is not kept from Services that claim it"),
            };
        }
        What::Broken { why }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    fn of(found: &[&str]) -> io::Result<BTreeSet<SocketAddr>> {
        Ok(found.iter().map(|address| address.parse().unwrap()).collect())
    }

    #[test]
    fn an_address_counts_as_long_as_the_name_has_it_and_for_a_while_after() {
        let mut servers = Servers { host: "api.example".into(), port: 6443, seen: BTreeMap::new() };
        let start = Instant::now();
        let mut at = |seconds, found| match servers.found(found, start + Duration::from_secs(seconds)) {
            What::Change { change: Change::ApiServers(all), .. } => {
                all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
            }
            What::Broken { why } => why,
            other => format!("{other:?}"),
        };
        let nothing = || Err(io::Error::other("nobody knows"));
        assert!(
            at(0, nothing()).ends_with("nobody knows; its address is not kept from Services that claim it")
        );
        assert_eq!(at(30, of(&["198.51.100.1:6443"])), "198.51.100.1:6443");
        assert_eq!(at(60, of(&["198.51.100.1:6443"])), "Alive");
        assert_eq!(at(90, of(&["198.51.100.2:6443"])), "198.51.100.1:6443 198.51.100.2:6443");
        assert_eq!(at(120, of(&["198.51.100.2:6443"])), "Alive", "connections may stand");
        assert!(at(700, nothing()).ends_with("nobody knows"), "what was known stays");
        assert_eq!(at(720, of(&["198.51.100.2:6443"])), "198.51.100.2:6443");
        assert!(at(750, of(&[])).ends_with("it has no address"));
    }

    #[tokio::test]
    async fn a_name_is_looked_up_again_and_an_address_never() {
        let servers = |host: &str| Servers { host: host.into(), port: 6443, seen: BTreeMap::new() };
        let (to, mut said) = mpsc::channel(8);
        let follow = servers("localhost").follow(to);
        let heard = async {
            let event = said.recv().await.unwrap();
            assert_eq!(event.source, Source::ApiServers);
            let What::Change { change: Change::ApiServers(all), .. } = event.what else {
                panic!("{:?}", event.what)
            };
            assert!(all.iter().all(|it| it.ip().is_loopback() && it.port() == 6443), "{all:?}");
            drop(said);
        };
        tokio::join!(follow, heard);

        let mut address = servers("::1");
        address.look_up().await;
        assert_eq!(address.known(), of(&["[::1]:6443"]).unwrap());
        let (to, mut said) = mpsc::channel(8);
        let nobody = async {
            tokio::task::yield_now().await;
            assert!(said.try_recv().is_err());
            drop(said);
        };
        tokio::join!(address.follow(to), nobody);
    }
}
