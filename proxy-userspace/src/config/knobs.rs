//! Every knob, in one table: flags, environment, KubeProxyConfiguration and `docs/config.md` are made from it.

/// One knob. Its environment twin is `VIPR_` and the flag in capitals.
#[derive(Debug)]
pub struct Knob {
    /// Without dashes; empty: only in the file.
    pub flag: &'static str,
    /// Path in KubeProxyConfiguration (v1alpha1); empty: only a flag. One that ends in `.` stands for all below it.
    pub field: &'static str,
    /// What its value looks like.
    pub kind: Kind,
    /// As it would be written; empty: unset.
    pub default: &'static str,
    /// What becomes of it.
    pub role: Role,
    /// One sentence.
    pub help: &'static str,
}

/// What a value looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// true or false.
    Switch,
    /// A number in this range.
    Number(i64, i64),
    /// Like `1h30m`, `30s`, `500ms`.
    Duration,
    /// Texts with commas between them.
    List,
    /// One of these.
    Choice(&'static [&'static str]),
    /// `name=bool` pairs with commas between them; in a file a map.
    Gates,
    /// An IP address.
    Ip,
    /// IP:port, or an IP address alone for the default port.
    Listen,
    /// Not looked at.
    Any,
}

/// What becomes of a knob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Has effect. With `--config` the file's value rules and the flag is ignored, as in kube-proxy.
    Used,
    /// Has effect, and the flag overrides the file.
    Overrides,
    /// Taken without effect; a value that is not the default is named in a warning.
    Ignored,
}

const fn knob(
    flag: &'static str,
    field: &'static str,
    kind: Kind,
    default: &'static str,
    role: Role,
    help: &'static str,
) -> Knob {
    Knob { flag, field, kind, default, role, help }
}

use Kind::{Any, Choice, Duration, Gates, Ip, List, Listen, Number, Switch, Text};
use Role::{Ignored, Overrides, Used};

/// `mode`.
pub const MODES: &[&str] = &["iptables", "nftables", "ipvs"];
/// `detectLocalMode`.
pub const DETECT: &[&str] = &["ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"];
const PORT: Kind = Number(0, 65535);
const NATURAL: Kind = Number(0, i64::MAX);
const BIT: Kind = Number(0, 31);

/// All of them, in the order in which they are shown.
#[rustfmt::skip]
pub const KNOBS: &[Knob] = &[
    knob("config", "", Text, "", Overrides, "KubeProxyConfiguration to read; the other flags of kube-proxy, listed below, are then ignored."),
    knob("kubeconfig", "clientConnection.kubeconfig", Text, "", Overrides, "Credentials and address of the API server; without it the pod's ServiceAccount is used."),
    knob("master", "", Text, "", Overrides, "URL of the API server, over that of the kubeconfig or of the pod's environment: never a Service that vipr itself programs. `--kube-api-server` is the same."),
    knob("manifests", "", Text, "", Overrides, "Folder of YAML or JSON manifests to follow instead of an API server."),
    knob("hostname-override", "hostnameOverride", Text, "", Overrides, "Name of the own Node; unset: the host's name. Trimmed and in small letters."),
    knob("cgroup", "", Text, "", Overrides, "Root of the cgroup2 tree whose sockets are served; unset: where cgroup2 is mounted, unified or hybrid."),
    knob("pin-path", "", Text, "/sys/fs/bpf/vipr", Overrides, "Directory on a BPF file system for tables, programs' links and state that outlives the agent."),
    knob("run-path", "", Text, "/run/vipr", Overrides, "Directory of the lock and of the socket on which `vipr status` asks."),
    knob("socket-plane", "", Choice(&["all", "host", "off"]), "all", Overrides, "Whose sockets are served when they connect: the pods' and the host's, the host's alone, or nobody's."),
    knob("pod-opt-out", "", Switch, "false", Overrides, "Leave the sockets of pods with the annotation `vipr/socket-plane: \"off\"` to the packet plane; the Pods of the own Node are followed then."),
    knob("packet-plane", "", Choice(&["on", "off"]), "on", Overrides, "Whether packets that come from no socket of this node are served, by programs on its network devices."),
    knob("device-exclude", "", List, "", Overrides, "Network devices that get no programs: names, or beginnings of names followed by `*`."),
    knob("flow-table-size", "", Number(2048, 1 << 24), "131072", Overrides, "Keys of established flows that the packet plane has room for, two to four for each, 170 bytes of memory each; half as many are added for those that wait for an answer. A table that is larger already stays so until `vipr cleanup`."),
    knob("read-back-interval", "", Duration, "10m", Overrides, "How often all tables are read back, compared and repaired; 0s: never."),
    knob("relist-interval", "", Duration, "6h", Overrides, "How often everything is listed anew from the API server, spread over the nodes by name; 0s: only when the server asks for it."),
    knob("bpf-log-level", "", Choice(&["off", "info", "debug", "trace"]), "off", Overrides, "What the programs in the kernel log; chosen when they are loaded, free when off."),
    knob("v", "logging.verbosity", Number(0, 10), "0", Overrides, "Verbosity: below 4 info, 4 and 5 debug (a line for each step of a plan), above trace. VIPR_LOG takes filters such as `vipr::watch=debug`."),
    knob("logging-format", "logging.format", Choice(&["text", "json"]), "text", Overrides, "Form of the log. `--log-format` is the same."),
    knob("cleanup", "", Switch, "false", Overrides, "Remove everything that any version left below the pin path, then exit: the same as `vipr cleanup`."),
    knob("init-only", "", Switch, "false", Overrides, "Do what needs privileges once (mount the BPF file system, set the kernel's connection tracking), then exit."),
    knob("write-config-to", "", Text, "", Overrides, "Write the configuration with its defaults to this file, then exit."),

    knob("proxy-mode", "mode", Choice(MODES), "iptables", Used, "Whose observable differences vipr shows; it installs no rules of either."),
    knob("detect-local-mode", "detectLocalMode", Choice(DETECT), "ClusterCIDR", Used, "How traffic of pods is told apart: by its source in the pods' CIDR or in the Node's, or by the device on which it arrives."),
    knob("cluster-cidr", "clusterCIDR", List, "", Used, "The pods' CIDR, or one of each family."),
    knob("pod-bridge-interface", "detectLocal.bridgeInterface", Text, "", Used, "The pods' bridge, for detectLocalMode BridgeInterface."),
    knob("pod-interface-name-prefix", "detectLocal.interfaceNamePrefix", Text, "", Used, "How the names of the pods' devices begin, for detectLocalMode InterfaceNamePrefix."),
    knob("masquerade-all", "iptables.masqueradeAll", Switch, "false", Used, "Masquerade all traffic to ClusterIPs (modes iptables and ipvs)."),
    knob("", "nftables.masqueradeAll", Switch, "false", Used, "The same in mode nftables."),
    knob("nodeport-addresses", "nodePortAddresses", List, "", Used, "CIDRs of the node addresses that serve NodePorts, or `primary`; unset: all in modes iptables and ipvs, `primary` in nftables."),
    knob("iptables-localhost-nodeports", "iptables.localhostNodePorts", Switch, "true", Used, "Serve NodePorts on 127.0.0.0/8 to the host's own sockets."),
    knob("feature-gates", "featureGates", Gates, "", Used, "Only AllowServiceExternalIPs has effect."),
    knob("bind-address", "bindAddress", Ip, "0.0.0.0", Used, "Its family is that of the default addresses below; nothing is bound to it."),
    knob("healthz-bind-address", "healthzBindAddress", Listen, "0.0.0.0:10256", Used, "Where /healthz and /livez answer; an empty flag disables them."),
    knob("metrics-bind-address", "metricsBindAddress", Listen, "127.0.0.1:10249", Used, "Where /metrics, /proxyMode and /configz answer; an empty flag disables them."),
    knob("bind-address-hard-fail", "bindAddressHardFail", Switch, "false", Used, "Exit if one of the two cannot be bound, instead of trying again every 5 s."),
    knob("healthz-port", "", PORT, "10256", Used, "Deprecated: port of --healthz-bind-address; 0 disables it."),
    knob("metrics-port", "", PORT, "10249", Used, "Deprecated: port of --metrics-bind-address; 0 disables it."),
    knob("iptables-sync-period", "iptables.syncPeriod", Duration, "30s", Used, "/healthz is red when a change has waited for twice as long; nothing else depends on it."),
    knob("", "nftables.syncPeriod", Duration, "30s", Used, "The same in mode nftables."),
    knob("ipvs-sync-period", "ipvs.syncPeriod", Duration, "30s", Used, "The same in mode ipvs."),
    knob("conntrack-udp-timeout", "conntrack.udpTimeout", Duration, "0s", Used, "nf_conntrack_udp_timeout, and after how much silence an unconnected UDP socket may get another backend; 0s: the kernel's own, or 30s."),
    knob("conntrack-max-per-core", "conntrack.maxPerCore", NATURAL, "32768", Used, "nf_conntrack_max is this times the CPUs (at most 1048576), and not below conntrack.min, and its hash table gets a bucket for each four if it has fewer; 0 leaves both."),
    knob("conntrack-min", "conntrack.min", NATURAL, "131072", Used, "See conntrack.maxPerCore."),
    knob("conntrack-tcp-timeout-established", "conntrack.tcpEstablishedTimeout", Duration, "24h", Used, "nf_conntrack_tcp_timeout_established; 0s leaves it."),
    knob("conntrack-tcp-timeout-close-wait", "conntrack.tcpCloseWaitTimeout", Duration, "1h", Used, "nf_conntrack_tcp_timeout_close_wait; 0s leaves it."),
    knob("conntrack-tcp-be-liberal", "conntrack.tcpBeLiberal", Switch, "false", Used, "nf_conntrack_tcp_be_liberal is set to 1."),
    knob("conntrack-udp-timeout-stream", "conntrack.udpStreamTimeout", Duration, "0s", Used, "nf_conntrack_udp_timeout_stream; 0s leaves it."),
    knob("oom-score-adj", "oomScoreAdj", Number(-1000, 1000), "-999", Used, "The agent's oom_score_adj; left as it is where the agent may not change it."),

    knob("iptables-min-sync-period", "iptables.minSyncPeriod", Duration, "1s", Ignored, "Changes are written at once."),
    knob("", "nftables.minSyncPeriod", Duration, "1s", Ignored, "Changes are written at once."),
    knob("ipvs-min-sync-period", "ipvs.minSyncPeriod", Duration, "0s", Ignored, "Changes are written at once."),
    knob("iptables-masquerade-bit", "iptables.masqueradeBit", BIT, "14", Used, "Bit of the mark of what is masqueraded, as long as nobody has answered (modes iptables and ipvs)."),
    knob("", "nftables.masqueradeBit", BIT, "14", Ignored, "In mode nftables nothing is marked."),
    knob("ipvs-scheduler", "ipvs.scheduler", Text, "", Ignored, "Backends are picked by a hash of the connection."),
    knob("ipvs-exclude-cidrs", "ipvs.excludeCIDRs", List, "", Ignored, "There are no IPVS rules to spare."),
    knob("ipvs-strict-arp", "ipvs.strictARP", Switch, "false", Ignored, "No address is assigned to a device."),
    knob("ipvs-tcp-timeout", "ipvs.tcpTimeout", Duration, "0s", Ignored, "There is no IPVS table."),
    knob("ipvs-tcpfin-timeout", "ipvs.tcpFinTimeout", Duration, "0s", Ignored, "There is no IPVS table."),
    knob("ipvs-udp-timeout", "ipvs.udpTimeout", Duration, "0s", Ignored, "There is no IPVS table."),
    knob("config-sync-period", "configSyncPeriod", Duration, "15m", Ignored, "Nothing is resynced from a cache; see --relist-interval."),
    knob("kube-api-content-type", "clientConnection.contentType", Text, "application/vnd.kubernetes.protobuf", Ignored, "JSON is spoken."),
    knob("", "clientConnection.acceptContentTypes", Text, "", Ignored, "JSON is spoken."),
    knob("kube-api-qps", "clientConnection.qps", Any, "5", Ignored, "There are three watches and nothing else."),
    knob("kube-api-burst", "clientConnection.burst", NATURAL, "10", Ignored, "There are three watches and nothing else."),
    knob("profiling", "enableProfiling", Switch, "false", Ignored, "There is no pprof server."),
    knob("show-hidden-metrics-for-version", "showHiddenMetricsForVersion", Text, "", Ignored, "There are no hidden metrics."),
    knob("vmodule", "logging.vmodule", Any, "", Ignored, "VIPR_LOG takes filters by module."),
    knob("log-flush-frequency", "logging.flushFrequency", Any, "5s", Ignored, "Every line is written at once."),
    knob("log-text-split-stream", "", Switch, "false", Ignored, "The log goes to stderr."),
    knob("log-text-info-buffer-size", "", Any, "0", Ignored, "Every line is written at once."),
    knob("log-json-split-stream", "", Switch, "false", Ignored, "The log goes to stderr."),
    knob("log-json-info-buffer-size", "", Any, "0", Ignored, "Every line is written at once."),
    knob("", "logging.options.", Any, "", Ignored, "Options of formats that vipr does not have."),
    knob("boot-id-file", "", Any, "", Ignored, "Of a library of kube-proxy's."),
    knob("machine-id-file", "", Any, "", Ignored, "Of a library of kube-proxy's."),
    knob("", "portRange", Text, "", Ignored, "Without effect in kube-proxy, too."),
    knob("", "windowsRunAsService", Switch, "false", Ignored, "For Windows."),
    knob("", "winkernel.", Any, "", Ignored, "For Windows."),
];

/// Other names of flags.
pub const ALIASES: &[(&str, &str)] = &[("master", "kube-api-server"), ("logging-format", "log-format")];

impl Knob {
    /// The environment twin.
    pub fn env(&self) -> String {
        format!("VIPR_{}", self.flag.to_uppercase().replace('-', "_"))
    }

    /// Unique name: the flag, or the field if there is none.
    pub fn key(&self) -> &'static str {
        if self.flag.is_empty() { self.field } else { self.flag }
    }
}

/// The knob of this key.
pub fn find(key: &str) -> Option<&'static Knob> {
    KNOBS.iter().find(|knob| knob.key() == key)
}
