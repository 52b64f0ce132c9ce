//! Who dials what, from the words of the command line.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use proxy_common::Protocol;

/// Who calls what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) from: Caller,
    pub(super) to: Target,
}

/// `--from`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    Pod,
    Host,
    Address(IpAddr),
}

impl FromStr for Caller {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "pod" => Ok(Self::Pod),
            "host" => Ok(Self::Host),
            _ => text.parse().map(Self::Address).map_err(|_| "write `pod`, `host` or an address".to_owned()),
        }
    }
}

/// `--to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) at: SocketAddr,
    pub(super) protocol: Protocol,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const LIKE: &str = "write it like 10.96.0.1:80/TCP or [fd00:96::a]:53/UDP";
        let (at, protocol) = text.rsplit_once('/').unwrap_or((text, "TCP"));
        let protocol = match protocol.to_ascii_uppercase().as_str() {
            "TCP" => Protocol::Tcp,
            "UDP" => Protocol::Udp,
            "SCTP" => Protocol::Sctp,
            _ => return Err(format!("the protocol {protocol:?} is none of TCP, UDP, SCTP")),
        };
        let at = at.parse().map_err(|_| match at.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(_) => format!("it has no port: {LIKE}"),
            Err(_) => format!("{at:?} is no address and port: {LIKE}"),
        })?;
        Ok(Self { at, protocol })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.at, self.protocol)
    }
}
