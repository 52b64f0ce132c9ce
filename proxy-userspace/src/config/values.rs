//! What was given for which knob, from where; read as types, with errors that name the place and the fix.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Result, anyhow, bail};

use super::knobs::{Kind, Knob, find};

/// Where a value stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// On the command line.
    Flag(&'static str),
    /// In the environment.
    Env(String),
    /// In the file of `--config`.
    Field(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) if flag.len() == 1 => write!(f, "-{flag}"),
            Self::Flag(flag) => write!(f, "--{flag}"),
            Self::Env(name) => write!(f, "the environment's {name}"),
            Self::Field(path) => write!(f, "{path} in the configuration file"),
        }
    }
}

/// One value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// As it is written; a list has several.
    pub texts: Vec<String>,
    /// Where.
    pub origin: Origin,
}

/// What was given, by the knobs' keys.
#[derive(Clone, Debug, Default)]
pub struct Values(pub BTreeMap<&'static str, Given>);

impl Values {
    /// What was given, if anything.
    pub fn given(&self, key: &str) -> Option<&Given> {
        self.0.get(key)
    }

    /// The file's field of the mode in use if it is given, else the flag that means all modes.
    pub fn in_use(&self, field: &'static str, flag: &'static str) -> &'static str {
        let by_flag = self.given(flag).is_some_and(|given| !matches!(given.origin, Origin::Field(_)));
        if by_flag && self.given(field).is_none() { flag } else { field }
    }

    /// Text; the default if nothing was given; `None` if that is empty.
    pub fn text(&self, key: &str) -> Option<String> {
        let text = match self.given(key) {
            Some(given) => given.texts.join(","),
            None => default(key).to_owned(),
        };
        Some(text).filter(|text| !text.is_empty())
    }

    /// true or false.
    pub fn switch(&self, key: &str) -> Result<bool> {
        self.parse(key, "true or false", |text| match text {
            "true" | "1" | "t" | "T" | "TRUE" | "True" => Some(true),
            "" | "false" | "0" | "f" | "F" | "FALSE" | "False" => Some(false),
            _ => None,
        })
    }

    /// A number in the knob's range.
    pub fn number(&self, key: &str) -> Result<i64> {
        let Some(Knob { kind: Kind::Number(low, high), .. }) = find(key) else {
            bail!("the knob {key} is no number");
        };
        let expected = match *high {
            i64::MAX => format!("a number not below {low}"),
            high => format!("a number from {low} to {high}"),
        };
        self.parse(key, &expected, |text| text.parse().ok().filter(|number| (low..=high).contains(&number)))
    }

    /// A duration.
    pub fn duration(&self, key: &str) -> Result<Duration> {
        self.parse(key, "a duration like 30s or 1h30m", parse_duration)
    }

    /// A list: no blanks, no empty entries.
    pub fn list(&self, key: &str) -> Vec<String> {
        let texts = self.given(key).map_or(&[][..], |given| &given.texts);
        let parts = texts.iter().flat_map(|text| text.split(',')).map(str::trim);
        parts.filter(|part| !part.is_empty()).map(str::to_owned).collect()
    }

    /// One of the knob's choices, in its own spelling.
    pub fn choice(&self, key: &str) -> Result<&'static str> {
        let Some(Knob { kind: Kind::Choice(choices), .. }) = find(key) else {
            bail!("the knob {key} is no choice");
        };
        self.parse(key, &format!("one of {}", choices.join(", ")), |text| {
            let text = if text.is_empty() { default(key) } else { text };
            choices.iter().copied().find(|choice| *choice == text)
        })
    }

    /// Feature gates.
    pub fn gates(&self, key: &str) -> Result<BTreeMap<String, bool>> {
        let pair = |text: &str| {
            let (name, on) = text.split_once('=')?;
            Some((name.trim().to_owned(), on.trim().parse().ok()?))
        };
        let parsed = self.list(key).iter().map(|text| pair(text)).collect::<Option<_>>();
        parsed.ok_or_else(|| self.wrong(key, "gates like AllowServiceExternalIPs=false"))
    }

    /// An IP address.
    pub fn ip(&self, key: &str) -> Result<IpAddr> {
        self.parse(key, "an IP address", |text| text.parse().ok())
    }

    /// An address to listen on; the port may be left out. An empty one disables the listener.
    pub fn listen(&self, key: &str, default: SocketAddr) -> Result<Option<SocketAddr>> {
        let Some(given) = self.given(key) else { return Ok(Some(default)) };
        let text = given.texts.join(",");
        if text.is_empty() {
            return Ok(None);
        }
        let bare = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let address = bare.map(|ip| SocketAddr::new(ip, default.port())).or_else(|_| text.parse());
        match address {
            Ok(address) if address.port() > 0 => Ok(Some(address)),
            _ => Err(self.wrong(key, &format!("IP:port with a port from 1 to 65535, like {default}"))),
        }
    }

    /// The error for a value that is not what is expected.
    pub fn wrong(&self, key: &str, expected: &str) -> anyhow::Error {
        match self.given(key) {
            Some(Given { texts, origin }) => anyhow!("{origin}: {:?} is not {expected}", texts.join(",")),
            None => anyhow!("the default of {key} is not {expected}"),
        }
    }

    fn parse<T>(&self, key: &str, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T> {
        let text = self.text(key).unwrap_or_default();
        parse(text.trim()).ok_or_else(|| self.wrong(key, expected))
    }
}

/// As Go writes it: `1h30m`, `500ms`, `1.5s`, `0`.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    if matches!(text, "" | "0") {
        return Some(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(unit_at);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        total = total.checked_add(part)?;
        rest = tail;
    }
    Some(total)
}

fn default(key: &str) -> &'static str {
    find(key).map_or("", |knob| knob.default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, milliseconds) in [
            ("30s", Some(30_000)),
            ("1h30m", Some(5_400_000)),
            ("24h0m0s", Some(86_400_000)),
            ("500ms", Some(500)),
            ("1.5s", Some(1_500)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("30", None),
            ("s", None),
            ("-1s", None),
            ("1d", None),
            ("1e300h", None),
        ] {
            assert_eq!(parse_duration(text).map(|d| d.as_millis()), milliseconds, "{text}");
        }
    }
}
