//! `vipr explain`: what happens to a call, and why.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::{FrontendRow, facts, table};

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Who is taken to call, and why.
    pub from: String,
    /// What is dialled: `address:port/protocol`.
    pub to: String,
    /// `socket` or `packet`.
    pub plane: &'static str,
    /// Why that one; `None`: it was asked for, or is the only one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plane_why: Option<String>,
    /// What happens to each way to send there.
    pub calls: Vec<CallRow>,
    /// What is dialled, if that is a frontend.
    pub frontend: Option<FrontendRow>,
    /// Whose it is, as the tables name it.
    pub service: Option<String>,
    /// Which endpoints answer this caller.
    pub set: Option<SetRow>,
    /// What is remembered of clients.
    pub affinity: Option<String>,
    /// What becomes of the caller's address.
    pub masquerade: String,
    /// The service's other endpoints; `None`: only the cluster's objects tell.
    pub left_out: Option<Vec<LeftOut>>,
    /// What else was assumed, or could not be read.
    pub notes: Vec<String>,
}

/// A system call, or a packet, and its outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CallRow {
    /// `connect`, `sendmsg` or `packet`.
    pub call: &'static str,
    /// Of a call: `rewritten`, `refused`, `leftToPackets` or `untouched`; of a packet: `sent`, `rejected`, `dropped` or
    /// `untouched`.
    pub verdict: &'static str,
    /// The same for people.
    pub text: String,
    /// What is counted.
    pub reason: &'static str,
    /// What that means.
    pub help: &'static str,
}

/// The endpoints that answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SetRow {
    /// `cluster` or `local`.
    pub name: &'static str,
    /// Why that one.
    pub why: &'static str,
    /// All have the same chance.
    pub endpoints: Vec<EndpointRow>,
}

/// An endpoint that may answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointRow {
    /// Where it listens.
    pub address: IpAddr,
    /// Where it listens.
    pub port: u16,
}

/// An endpoint that does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LeftOut {
    /// Where it listens.
    pub address: IpAddr,
    /// Where it listens.
    pub port: u16,
    /// The node it is on.
    pub node: Option<String>,
    /// Why it does not serve this caller.
    pub why: String,
}

impl Explanation {
    /// For people.
    pub fn text(&self) -> String {
        let calls = self.calls.iter().map(|call| (call.call, format!("{}\n{}", call.text, call.help)));
        let plane = self.plane_why.clone().map(|why| ("plane", why));
        let lines =
            [("from", self.from.clone()), ("to", self.to.clone())].into_iter().chain(plane).chain(calls);
        let frontend = self.frontend.as_ref().map(|frontend| ("frontend", frontend.text()));
        let service = self.service.clone().map(|service| ("service", service));
        let set = self.set.as_ref().map(|set| ("set", format!("{}: {}", set.name, set.why)));
        let affinity = self.affinity.clone().map(|affinity| ("affinity", affinity));
        let lines = lines.chain(frontend).chain(service).chain(set).chain(affinity);
        let masquerade = [("masquerade", self.masquerade.clone())];
        let notes = self.notes.iter().map(|note| ("note", note.clone()));
        let mut text = facts(lines.chain(masquerade).chain(notes));
        if let Some(set) = &self.set {
            text.push_str(&candidates(set));
        }
        text.push_str(&self.left_out());
        text
    }

    fn left_out(&self) -> String {
        match &self.left_out {
            Some(rows) if rows.is_empty() => String::new(),
            Some(rows) => {
                let rows = rows.iter().map(|row| {
                    let at = SocketAddr::new(row.address, row.port).to_string();
                    [at, row.node.clone().unwrap_or_else(|| "-".into()), row.why.clone()]
                });
                format!("\n{}", table(["LEFT OUT", "NODE", "WHY"], rows))
            }
            None if self.set.is_some() => {
                "\nThe tables hold only endpoints that serve; `--cluster FILE` tells of the others, and why.\n".into()
            }
            None => String::new(),
        }
    }
}

fn candidates(set: &SetRow) -> String {
    if set.endpoints.is_empty() {
        return String::new();
    }
    let of = set.endpoints.len();
    let rows = set.endpoints.iter();
    let rows = rows.map(|row| [SocketAddr::new(row.address, row.port).to_string(), format!("1 in {of}")]);
    format!("\n{}", table(["ENDPOINT", "CHANCE"], rows))
}
