//! From flags, environment and KubeProxyConfiguration to what the agent does. The table of all knobs is
//! [`knobs::KNOBS`]; `docs/config.md` is made from it.

pub mod cgroup;
mod conntrack;
mod document;
mod file;
mod flags;
pub mod knobs;
mod mark;
#[cfg(test)]
mod tests;
mod values;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use proxy_common::layout::SocketPlane;

pub use conntrack::Conntrack;
pub use document::markdown;
pub use flags::Flags;
use knobs::{KNOBS, Kind, Role};
use values::{Given, Values};

use crate::model::{Cidr, Family, LocalDetector, NodePortAddresses, Profile, Reserved, Settings};

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Be the agent.
    Run,
    /// `--cleanup`.
    Cleanup,
    /// `--init-only`.
    Init,
    /// `--write-config-to`.
    Write(PathBuf),
}

/// Where Services and slices come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// A folder.
    Manifests(PathBuf),
    /// An API server.
    ApiServer {
        /// Credentials; `None`: the pod's.
        kubeconfig: Option<PathBuf>,
        /// URL that overrides.
        url: Option<String>,
    },
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// The whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// What to do.
    pub action: Action,
    /// `--config`, if it was given.
    pub file: Option<PathBuf>,
    /// What the model needs.
    pub settings: Settings,
    /// Where the cluster's state comes from.
    pub origins: Origins,
    /// Root of cgroup2; `None`: to be found.
    pub cgroup: Option<PathBuf>,
    /// Directory of the pins.
    pub pin_path: PathBuf,
    /// Directory of lock and socket.
    pub run_path: PathBuf,
    /// Keys of established flows that there is room for.
    pub flow_keys: u32,
    /// Bits of the mark of what is masqueraded; 0: none.
    pub masquerade_mark: u32,
    /// Whose sockets are served.
    pub socket_plane: SocketPlane,
    /// `conntrack.udpTimeout`; `None`: the kernel's.
    pub udp_timeout: Option<Duration>,
    /// The kernel's connection tracking.
    pub conntrack: Conntrack,
    /// How often tables are read back; `None`: never.
    pub read_back: Option<Duration>,
    /// How often the API is listed anew; `None`: when it asks for it.
    pub relist: Option<Duration>,
    /// `syncPeriod`: half of the age of a change at which `/healthz` gets red.
    pub sync_period: Duration,
    /// Gate `AllowServiceExternalIPs`.
    pub external_ips: bool,
    /// `/healthz` and `/livez`.
    pub healthz: Option<SocketAddr>,
    /// `/metrics` and its neighbours.
    pub metrics: Option<SocketAddr>,
    /// Exit if one of the two can't be bound.
    pub bind_hard_fail: bool,
    /// `oom_score_adj`.
    pub oom_score_adj: i16,
    /// `-v`.
    pub verbosity: u8,
    /// Form of the log.
    pub log_format: LogFormat,
    /// Of the programs in the kernel: 0 off, 3 info, 4 debug, 5 trace.
    pub bpf_log_level: u8,
    /// What an operator should know.
    pub warnings: Vec<String>,
    /// KubeProxyConfiguration with all defaults, for `/configz` and `--write-config-to`.
    pub effective: serde_json::Value,
    /// Every flag and its value, for `/flagz`.
    pub flags: Vec<(&'static str, String)>,
}

impl Config {
    /// Put together. `env` reads a variable, `read` a file; `hostname` is the host's.
    pub fn resolve(
        flags: Flags,
        env: impl Fn(&str) -> Option<String>,
        read: impl Fn(&str) -> std::io::Result<String>,
        hostname: &str,
    ) -> Result<Self> {
        let mut values = flags.with_env(env);
        let mut warnings = Vec::new();
        let file = values.text("config");
        if let Some(path) = &file {
            let text = read(path).with_context(|| format!("read the configuration file {path}"))?;
            let (in_file, odd) = file::read(&text).with_context(|| path.clone())?;
            warnings.extend(odd);
            values = layer(values, in_file, &mut warnings);
        }
        check(&values)?;
        warnings.extend(ignored(&values));
        let config = Self::from_values(&values, hostname, warnings)?;
        Ok(Self { file: file.map(PathBuf::from), ..config })
    }

    fn from_values(values: &Values, hostname: &str, mut warnings: Vec<String>) -> Result<Self> {
        let profile = match values.choice("proxy-mode")? {
            "nftables" => Profile::Nftables,
            "ipvs" => Profile::Ipvs,
            _ => Profile::Iptables,
        };
        let (masquerade_all, sync_period) = match profile {
            // Flags of kube-proxy mean the mode in use, whatever their name.
            Profile::Nftables => (
                values.switch(values.in_use("nftables.masqueradeAll", "masquerade-all"))?,
                values.duration(values.in_use("nftables.syncPeriod", "iptables-sync-period"))?,
            ),
            Profile::Ipvs => (values.switch("masquerade-all")?, values.duration("ipvs-sync-period")?),
            Profile::Iptables => (values.switch("masquerade-all")?, values.duration("iptables-sync-period")?),
        };
        if sync_period.is_zero() {
            bail!("syncPeriod of the mode in use is 0: write a duration like 30s");
        }
        let node_port_addresses = node_port_addresses(values)?;
        if node_port_addresses == NodePortAddresses::Unset && profile != Profile::Nftables {
            warnings.push(
                "nodePortAddresses is unset: NodePorts are served on all local addresses (write `primary` to serve them on the \
                 node's primary ones)"
                    .into(),
            );
        }
        let gates = values.gates("feature-gates")?;
        let seconds = |duration: Duration| Some(duration).filter(|duration| !duration.is_zero());
        let (healthz, metrics) = listeners(values)?;
        Ok(Self {
            action: action(values)?,
            file: None,
            settings: Settings {
                node_name: node_name(values, hostname)?.into(),
                profile,
                local_detector: local_detector(values)?,
                masquerade_all,
                node_port_addresses,
                localhost_node_ports: values.switch("iptables-localhost-nodeports")?,
                packet_plane: values.choice("packet-plane")? == "on",
                pod_opt_out: values.switch("pod-opt-out")?,
                reserved: Reserved::with_health([healthz, metrics]),
                excluded_devices: excluded_devices(values)?,
            },
            origins: match values.text("manifests") {
                Some(folder) => Origins::Manifests(folder.into()),
                None => Origins::ApiServer {
                    kubeconfig: values.text("kubeconfig").map(PathBuf::from),
                    url: values.text("master"),
                },
            },
            cgroup: values.text("cgroup").map(PathBuf::from),
            pin_path: values.text("pin-path").unwrap_or_default().into(),
            run_path: values.text("run-path").unwrap_or_default().into(),
            flow_keys: u32::try_from(values.number("flow-table-size")?)?,
            masquerade_mark: mark::masquerade(values, profile)?,
            socket_plane: match values.choice("socket-plane")? {
                "host" => SocketPlane::Host,
                "off" => SocketPlane::Off,
                _ => SocketPlane::All,
            },
            udp_timeout: seconds(values.duration("conntrack-udp-timeout")?),
            conntrack: Conntrack::from_values(values)?,
            read_back: seconds(values.duration("read-back-interval")?),
            relist: seconds(values.duration("relist-interval")?),
            sync_period,
            external_ips: gates.get("AllowServiceExternalIPs").copied().unwrap_or(true),
            healthz,
            metrics,
            bind_hard_fail: values.switch("bind-address-hard-fail")?,
            oom_score_adj: values.number("oom-score-adj")? as i16,
            verbosity: values.number("v")? as u8,
            log_format: match values.choice("logging-format")? {
                "json" => LogFormat::Json,
                _ => LogFormat::Text,
            },
            bpf_log_level: match values.choice("bpf-log-level")? {
                "info" => 3,
                "debug" => 4,
                "trace" => 5,
                _ => 0,
            },
            warnings,
            effective: document::effective(values),
            flags: document::flags(values),
        })
    }
}

/// The file under the flags that override it; what is ignored is named.
fn layer(flags: Values, file: Values, warnings: &mut Vec<String>) -> Values {
    let mut values = file;
    for (key, given) in flags.0 {
        let overrides = KNOBS.iter().any(|knob| knob.key() == key && knob.role == Role::Overrides);
        if overrides {
            values.0.insert(key, given);
        } else {
            let field = KNOBS.iter().find(|knob| knob.key() == key).map_or("", |knob| knob.field);
            let instead =
                if field.is_empty() { String::new() } else { format!(": write {field} into the file") };
            warnings.push(format!("{} is ignored because --config is given{instead}", given.origin));
        }
    }
    values
}

/// Every value has the form that its knob asks for, whether it has effect or not.
fn check(values: &Values) -> Result<()> {
    for key in values.0.keys() {
        match knobs::find(key).map(|knob| knob.kind) {
            Some(Kind::Switch) => drop(values.switch(key)?),
            Some(Kind::Number(..)) => drop(values.number(key)?),
            Some(Kind::Duration) => drop(values.duration(key)?),
            Some(Kind::Choice(_)) => drop(values.choice(key)?),
            Some(Kind::Gates) => drop(values.gates(key)?),
            Some(Kind::Ip) => drop(values.ip(key)?),
            _ => {}
        }
    }
    Ok(())
}

/// One warning that names everything without effect that was set to something else than the default.
fn ignored(values: &Values) -> Option<String> {
    let odd = |key: &str, given: &Given| {
        let knob = knobs::find(key)?;
        let text = given.texts.join(",");
        let same = text == knob.default
            || text.is_empty()
            || (knob.kind == Kind::Duration
                && values::parse_duration(&text) == values::parse_duration(knob.default));
        (knob.role == Role::Ignored && !same).then(|| given.origin.to_string())
    };
    let names: Vec<_> = values.0.iter().filter_map(|(key, given)| odd(key, given)).collect();
    (!names.is_empty()).then(|| format!("without effect (docs/config.md says why): {}", names.join(", ")))
}

fn action(values: &Values) -> Result<Action> {
    Ok(if values.switch("cleanup")? {
        Action::Cleanup
    } else if values.switch("init-only")? {
        Action::Init
    } else if let Some(path) = values.text("write-config-to") {
        Action::Write(path.into())
    } else {
        Action::Run
    })
}

fn node_name(values: &Values, hostname: &str) -> Result<String> {
    let name = values.text("hostname-override").unwrap_or_else(|| hostname.to_owned());
    let name = name.trim().to_lowercase();
    if name.is_empty() {
        bail!("the node's name is empty: give --hostname-override the name of this Node");
    }
    Ok(name)
}

fn local_detector(values: &Values) -> Result<LocalDetector> {
    let mode = values.choice("detect-local-mode")?;
    let device = |key: &str, field: &str| {
        values.text(key).with_context(|| {
            format!("detectLocalMode {mode} needs a device: give --{key}, or detectLocal.{field} in the file")
        })
    };
    Ok(match mode {
        "NodeCIDR" => LocalDetector::NodeCidr,
        "BridgeInterface" => {
            LocalDetector::BridgeInterface(device("pod-bridge-interface", "bridgeInterface")?.into())
        }
        "InterfaceNamePrefix" => LocalDetector::InterfaceNamePrefix(
            device("pod-interface-name-prefix", "interfaceNamePrefix")?.into(),
        ),
        _ => LocalDetector::ClusterCidr(cluster_cidrs(values)?),
    })
}

/// A `*` elsewhere than at the end would stand for nothing.
fn excluded_devices(values: &Values) -> Result<Vec<Arc<str>>> {
    let names = values.list("device-exclude");
    if names.iter().any(|name| name.strip_suffix('*').unwrap_or(name).contains('*')) {
        return Err(values
            .wrong("device-exclude", "names of devices, where `*` may stand at the end, like eth1,tun*"));
    }
    Ok(names.into_iter().map(Arc::from).collect())
}

fn cluster_cidrs(values: &Values) -> Result<Vec<Cidr>> {
    let mut cidrs: Vec<Cidr> = Vec::new();
    for text in values.list("cluster-cidr") {
        let expected = "one CIDR, or one IPv4 and one IPv6 CIDR, like 10.244.0.0/16,fd00:10:244::/56";
        let cidr = parse_cidr(&text).ok_or_else(|| values.wrong("cluster-cidr", expected))?;
        if cidrs.iter().any(|known| Family::of(known.address) == Family::of(cidr.address)) {
            return Err(values.wrong("cluster-cidr", expected));
        }
        cidrs.push(cidr);
    }
    Ok(cidrs)
}

fn node_port_addresses(values: &Values) -> Result<NodePortAddresses> {
    let texts = values.list("nodeport-addresses");
    let expected = "`primary` alone, or CIDRs like 192.0.2.0/24";
    if texts.is_empty() {
        return Ok(NodePortAddresses::Unset);
    }
    if texts == ["primary"] {
        return Ok(NodePortAddresses::Primary);
    }
    let cidrs: Option<Vec<Cidr>> = texts.iter().map(|text| parse_cidr(text)).collect();
    cidrs.map(NodePortAddresses::Ranges).ok_or_else(|| values.wrong("nodeport-addresses", expected))
}

/// `/healthz` and `/metrics`.
fn listeners(values: &Values) -> Result<(Option<SocketAddr>, Option<SocketAddr>)> {
    let (any, loopback): (IpAddr, IpAddr) = match values.ip("bind-address")? {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST.into()),
    };
    let listen = |address_key, port_key, ip, port| match values.number(port_key)? {
        0 if values.given(address_key).is_none() => Ok(None),
        given if values.given(port_key).is_some() => {
            values.listen(address_key, SocketAddr::new(ip, given as u16))
        }
        _ => values.listen(address_key, SocketAddr::new(ip, port)),
    };
    Ok((
        listen("healthz-bind-address", "healthz-port", any, 10256)?,
        listen("metrics-bind-address", "metrics-port", loopback, 10249)?,
    ))
}

/// Strict, unlike those of the API's objects: what an operator writes is not repaired.
fn parse_cidr(text: &str) -> Option<Cidr> {
    let (address, length) = text.split_once('/')?;
    let (address, length) = (address.parse::<IpAddr>().ok()?, length.parse::<u8>().ok()?);
    let address = match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32_u32.checked_sub(length.into())?).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128_u32.checked_sub(length.into())?).unwrap_or(0);
            Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
    };
    Some(Cidr { address, length })
}
