//! The rules of kube-proxy spec §3: what overrides what, what is refused, what is warned of.

use std::{collections::BTreeSet, io};

use clap::{Args, Command, FromArgMatches};

use super::*;

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

fn flags(args: &[&str]) -> Flags {
    let matches = Flags::augment_args(Command::new("run")).try_get_matches_from([&["run"], args].concat());
    Flags::from_arg_matches(&matches.expect("good flags")).unwrap()
}

fn with(args: &[&str], env: &[(&str, &str)], file: &str) -> Result<Config> {
    let env = |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned());
    let read = |path: &str| {
        if path == "f" { Ok(format!("{HEAD}{file}")) } else { Err(io::ErrorKind::NotFound.into()) }
    };
    Config::resolve(flags(args), env, read, "Host-Name\n")
}

fn by_flags(args: &[&str]) -> Config {
    with(args, &[], "").unwrap()
}

fn by_file(file: &str) -> Config {
    with(&["--config=f"], &[], file).unwrap()
}

fn cidrs(config: &Config) -> Vec<String> {
    let node = crate::model::Node::default();
    let ranges = config.settings.local_detector.ranges(&node).expect("by ranges");
    ranges.iter().map(ToString::to_string).collect()
}

fn error(args: &[&str], file: &str) -> String {
    let args = if file.is_empty() { args.to_vec() } else { [&["--config", "f"], args].concat() };
    format!("{:#}", with(&args, &[], file).expect_err("refused"))
}

#[test]
fn defaults_are_kube_proxys() {
    let config = by_flags(&[]);
    assert_eq!(config.action, Action::Run);
    assert_eq!(
        config.settings,
        Settings {
            node_name: "host-name".into(),
            localhost_node_ports: true,
            packet_plane: true,
            reserved: Reserved {
                ports: BTreeSet::from([10_248, 10_249, 10_250, 10_256]),
                api_servers: BTreeSet::new(),
            },
            ..Settings::default()
        }
    );
    assert_eq!(config.healthz, Some("0.0.0.0:10256".parse().unwrap()));
    assert_eq!(config.metrics, Some("127.0.0.1:10249".parse().unwrap()));
    assert_eq!(config.sync_period, Duration::from_secs(30));
    assert_eq!(config.pin_path, PathBuf::from("/sys/fs/bpf/vipr"));
    assert_eq!(config.origins, Origins::ApiServer { kubeconfig: None, url: None });
    assert!(config.external_ips && config.cgroup.is_none() && config.udp_timeout.is_none());
}

#[test]
fn flags_are_taken_in_gos_spellings() {
    let config = by_flags(&[
        "--masquerade-all",
        "--iptables-localhost-nodeports=false",
        "--cluster-cidr",
        "10.0.0.0/8,fd00::/48",
        "-v=2",
        "--nodeport-addresses=192.0.2.0/24",
        "--nodeport-addresses=2001:db8::/64",
        "--proxy-mode=ipvs",
        "--v",
        "4",
        "--oom-score-adj",
        "-500",
        "--kube-api-server=https://192.0.2.1:6443",
        "--log-format=json",
    ]);
    assert!(config.settings.masquerade_all && !config.settings.localhost_node_ports);
    assert_eq!(config.settings.profile, Profile::Ipvs);
    assert_eq!(cidrs(&config), ["10.0.0.0/8", "fd00::/48"]);
    assert!(
        matches!(&config.settings.node_port_addresses, NodePortAddresses::Ranges(ranges) if ranges.len() == 2)
    );
    assert_eq!((config.verbosity, config.oom_score_adj, config.log_format), (4, -500, LogFormat::Json));
    assert_eq!(
        config.origins,
        Origins::ApiServer { kubeconfig: None, url: Some("https://192.0.2.1:6443".into()) }
    );
}

#[test]
fn the_environment_stands_in_for_flags_and_flags_win() {
    let env =
        [("VIPR_PIN_PATH", "/sys/fs/bpf/x"), ("VIPR_MASTER", "https://a"), ("VIPR_MASQUERADE_ALL", "true")];
    let config = with(&["--master=https://b"], &env, "").unwrap();
    assert_eq!(config.pin_path, PathBuf::from("/sys/fs/bpf/x"));
    assert_eq!(config.origins, Origins::ApiServer { kubeconfig: None, url: Some("https://b".into()) });
    assert!(config.settings.masquerade_all);
}

#[test]
fn the_file_is_read_as_kubeadm_writes_it() {
    let config = by_file(
        "bindAddress: 0.0.0.0\nbindAddressHardFail: false\nclientConnection:\n  acceptContentTypes: \"\"\n  burst: 0\n  \
         contentType: \"\"\n  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf\n  qps: 0\nclusterCIDR: 10.244.0.0/16\n\
         configSyncPeriod: 0s\nconntrack:\n  maxPerCore: null\n  min: null\n  tcpBeLiberal: false\ndetectLocal:\n  \
         bridgeInterface: \"\"\ndetectLocalMode: \"\"\nenableProfiling: false\nhealthzBindAddress: \"\"\nhostnameOverride: \"\"\n\
         iptables:\n  localhostNodePorts: null\n  masqueradeAll: false\n  masqueradeBit: null\n  syncPeriod: 30s\nlogging:\n  \
         flushFrequency: 0\n  options:\n    json:\n      infoBufferSize: \"0\"\n  verbosity: 0\nmetricsBindAddress: \"\"\nmode: \"\"\n\
         nodePortAddresses: null\noomScoreAdj: null\nportRange: \"\"\nshowHiddenMetricsForVersion: \"\"\n\
         winkernel:\n  enableDSR: false\n",
    );
    let kubeconfig = Some("/var/lib/kube-proxy/kubeconfig.conf".into());
    assert_eq!(config.origins, Origins::ApiServer { kubeconfig, url: None });
    assert_eq!(cidrs(&config), ["10.244.0.0/16"]);
    assert_eq!(config.healthz, Some("0.0.0.0:10256".parse().unwrap()));
    assert!(config.settings.localhost_node_ports);
}

#[test]
fn the_file_rules_over_flags_but_for_those_that_override_it() {
    let args = [
        "--config=f",
        "--hostname-override= N1 ",
        "--cluster-cidr=10.0.0.0/8",
        "-v=5",
        "--master=https://b",
        "--kubeconfig=k",
    ];
    let file = "hostnameOverride: other\nclusterCIDR: 10.9.0.0/16\nlogging: {verbosity: 1}\nclientConnection: {kubeconfig: z}\n";
    let config = with(&args, &[("VIPR_MASQUERADE_ALL", "true")], file).unwrap();
    assert_eq!(&*config.settings.node_name, "n1");
    assert_eq!(cidrs(&config), ["10.9.0.0/16"]);
    assert_eq!(config.verbosity, 5);
    assert_eq!(
        config.origins,
        Origins::ApiServer { kubeconfig: Some("k".into()), url: Some("https://b".into()) }
    );
    assert!(!config.settings.masquerade_all);
    let named = |text: &str| config.warnings.iter().any(|warning| warning.contains(text));
    assert!(
        named("--cluster-cidr is ignored") && named("write clusterCIDR into the file"),
        "{:?}",
        config.warnings
    );
    assert!(named("VIPR_MASQUERADE_ALL is ignored"), "{:?}", config.warnings);
}

#[test]
fn pods_are_told_apart_in_all_four_modes() {
    let detector = |config: Config| config.settings.local_detector;
    assert_eq!(detector(by_file("detectLocalMode: NodeCIDR\n")), LocalDetector::NodeCidr);
    let bridge = "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}\n";
    assert_eq!(detector(by_file(bridge)), LocalDetector::BridgeInterface("cni0".into()));
    let prefix = ["--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=veth"];
    assert_eq!(detector(by_flags(&prefix)), LocalDetector::InterfaceNamePrefix("veth".into()));
    assert_eq!(detector(by_flags(&[])), LocalDetector::ClusterCidr(Vec::new()));
}

#[test]
fn the_packet_plane_is_on_unless_it_is_told_off() {
    assert!(by_flags(&[]).settings.packet_plane);
    let config = by_flags(&["--packet-plane=off", "--device-exclude=eth1,tun*"]);
    assert!(!config.settings.packet_plane);
    assert_eq!(config.settings.excluded_devices, ["eth1".into(), "tun*".into()]);
}

#[test]
fn connection_tracking_is_set_as_kube_proxy_sets_it() {
    let defaults = by_flags(&[]).conntrack.sysctls(2);
    assert_eq!(
        defaults,
        [
            ("nf_conntrack_max", 131_072),
            ("nf_conntrack_tcp_timeout_established", 86_400),
            ("nf_conntrack_tcp_timeout_close_wait", 3600),
        ]
    );
    let config = by_file(
        "conntrack: {maxPerCore: 0, tcpCloseWaitTimeout: 30m, udpStreamTimeout: 3m, tcpBeLiberal: true}\n",
    );
    assert_eq!(
        config.conntrack.sysctls(2),
        [
            ("nf_conntrack_tcp_timeout_established", 86_400),
            ("nf_conntrack_tcp_timeout_close_wait", 1800),
            ("nf_conntrack_udp_timeout_stream", 180),
            ("nf_conntrack_tcp_be_liberal", 1),
        ]
    );
}

#[test]
fn each_mode_has_its_own_fields() {
    let file = |mode: &str| {
        by_file(&format!(
            "mode: {mode}\niptables: {{masqueradeAll: true, syncPeriod: 7s}}\nnftables: {{syncPeriod: 9s}}\nipvs: {{syncPeriod: 8s}}\n"
        ))
    };
    for (mode, masquerade_all, seconds) in [("iptables", true, 7), ("nftables", false, 9), ("ipvs", true, 8)]
    {
        let config = file(mode);
        assert_eq!(config.settings.masquerade_all, masquerade_all, "{mode}");
        assert_eq!(config.sync_period, Duration::from_secs(seconds), "{mode}");
    }
    let mark = |mode: &str| by_flags(&[mode, "--iptables-masquerade-bit=10"]).masquerade_mark;
    assert_eq!(
        ["--proxy-mode=iptables", "--proxy-mode=ipvs", "--proxy-mode=nftables"].map(mark),
        [1 << 10, 1 << 10, 0]
    );
    assert_eq!(by_flags(&[]).masquerade_mark, 0x4000);
    assert!(by_flags(&["--proxy-mode=nftables", "--masquerade-all"]).settings.masquerade_all);
}

#[test]
fn unknown_double_and_unsupported_fields_are_named_and_not_fatal() {
    let config = by_file(
        "clusterCidr: 10.0.0.0/8\nmode: ipvs\nmode: iptables\nipvs: {scheduler: rr}\niptables: {minSyncPeriod: 5s, masqueradeBit: 14}\nwinkernel: {enableDSR: true}\n",
    );
    let all = config.warnings.join("\n");
    assert!(all.contains("clusterCidr in the configuration file is no field"), "{all}");
    assert!(all.contains("mode stands twice"), "{all}");
    assert!(
        all.contains("ipvs.scheduler")
            && all.contains("iptables.minSyncPeriod")
            && all.contains("winkernel.enableDSR"),
        "{all}"
    );
    assert!(!all.contains("masqueradeBit"), "a default is nothing to warn of: {all}");
    assert_eq!(config.settings.profile, Profile::Iptables);
}

#[test]
fn a_bad_value_is_an_error_that_names_its_place_and_the_fix() {
    for (args, file, expected) in [
        (
            &["--proxy-mode=kernelspace"][..],
            "",
            &["--proxy-mode", "kernelspace", "iptables, nftables, ipvs"][..],
        ),
        (&["--cluster-cidr=10.0.0.0"], "", &["--cluster-cidr", "one IPv4 and one IPv6"]),
        (&["--cluster-cidr=10.0.0.0/8,10.1.0.0/16"], "", &["--cluster-cidr", "one IPv4 and one IPv6"]),
        (&["--nodeport-addresses=primary,10.0.0.0/8"], "", &["--nodeport-addresses", "`primary` alone"]),
        (&["--healthz-bind-address=localhost"], "", &["--healthz-bind-address", "IP:port"]),
        (&["--conntrack-min=-1"], "", &["--conntrack-min", "not below 0"]),
        (&["--oom-score-adj=-1001"], "", &["--oom-score-adj", "from -1000 to 1000"]),
        (&["--iptables-sync-period=0s"], "", &["syncPeriod", "30s"]),
        (&["--hostname-override= "], "", &["--hostname-override"]),
        (&["--detect-local-mode=BridgeInterface"], "", &["BridgeInterface", "--pod-bridge-interface"]),
        (&[], "detectLocalMode: InterfaceNamePrefix\n", &["detectLocal.interfaceNamePrefix"]),
        (&["--device-exclude=a*b"], "", &["--device-exclude", "a*b", "at the end"]),
        (&["--config=missing"], "", &["missing"]),
        (&[], "iptables: {masqueradeAll: maybe}\n", &["f: ", "iptables.masqueradeAll", "true or false"][1..]),
        (&[], "conntrack: {udpTimeout: soon}\n", &["conntrack.udpTimeout", "30s"]),
        (&[], "metricsBindAddress: 127.0.0.1:0\n", &["metricsBindAddress", "port from 1"]),
        (&[], "mode: [\n", &["YAML"]),
    ] {
        let message = error(args, file);
        for part in expected {
            assert!(message.contains(part), "{args:?} {file:?}: {message}");
        }
    }
}

#[test]
fn another_kind_of_file_is_refused_with_what_to_write() {
    let read =
        |text: &'static str| Config::resolve(flags(&["--config=f"]), |_| None, move |_| Ok(text.into()), "h");
    for text in ["kind: Config\napiVersion: v1\n", "mode: iptables\n", "[]", "", "5"] {
        let message = format!("{:#}", read(text).expect_err(text));
        assert!(message.contains("configuration file"), "{message}");
    }
}

#[test]
fn listeners_follow_bind_address_and_can_be_disabled_by_flags_only() {
    let address = |text: &str| Some(text.parse::<SocketAddr>().unwrap());
    let config = by_flags(&["--bind-address=::"]);
    assert_eq!((config.healthz, config.metrics), (address("[::]:10256"), address("[::1]:10249")));
    let config = by_flags(&["--healthz-bind-address=", "--metrics-port=0"]);
    assert_eq!((config.healthz, config.metrics), (None, None));
    let config = by_flags(&["--healthz-bind-address=192.0.2.1", "--metrics-bind-address=[::1]:99"]);
    assert_eq!((config.healthz, config.metrics), (address("192.0.2.1:10256"), address("[::1]:99")));
    let config = by_file("healthzBindAddress: \"\"\nmetricsBindAddress: 0.0.0.0\n");
    assert_eq!((config.healthz, config.metrics), (address("0.0.0.0:10256"), address("0.0.0.0:10249")));
}

#[test]
fn the_gate_allow_service_external_ips_is_read_from_both() {
    assert!(!by_flags(&["--feature-gates=AllowServiceExternalIPs=false,Other=true"]).external_ips);
    assert!(!by_file("featureGates: {AllowServiceExternalIPs: false}\n").external_ips);
}

#[test]
fn the_effective_configuration_has_types_and_reads_back_the_same() {
    let file = "clusterCIDR: 10.0.0.0/8\nnodePortAddresses: [primary]\niptables: {masqueradeAll: true}\nfeatureGates: {A: true}\n";
    let config = by_file(file);
    assert_eq!(config.effective["iptables"]["masqueradeAll"], true);
    assert_eq!(config.effective["conntrack"]["min"], 131072);
    assert_eq!(config.effective["nodePortAddresses"][0], "primary");
    assert_eq!(config.effective["featureGates"]["A"], true);
    assert_eq!(config.effective["clientConnection"]["qps"], 5.0);
    let text = serde_yaml_ng::to_string(&config.effective).unwrap();
    let again =
        Config::resolve(flags(&["--config=f"]), |_| None, move |_| Ok(text.clone()), "host-name").unwrap();
    assert_eq!(again.effective, config.effective);
    assert_eq!(again.settings, config.settings);
}

#[test]
fn every_knob_has_one_key_and_one_sentence() {
    for (i, knob) in KNOBS.iter().enumerate() {
        assert!(KNOBS[..i].iter().all(|other| other.key() != knob.key()), "{}", knob.key());
        assert!(knob.help.ends_with('.'), "{}", knob.key());
    }
}

#[test]
fn the_page_of_all_knobs_is_fresh() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/config.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, markdown()).unwrap();
    }
    let known = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(known, markdown(), "UPDATE_DOCS=1 writes it anew");
}
