//! Builds the agent's tasks, names them, and stops them in order.

mod bpffs;
mod changed;
mod conntrack;
mod handover;
mod lock;
mod logging;
mod sweep;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot, watch},
};

pub use lock::Place;
pub use sweep::flow_rooms;

use crate::{
    config::{Action, Config, Flags, Origins, cgroup},
    dataplane::{self, Kernel, Options},
    events,
    model::{Model, Profile, Questions, Source},
    plan::Capacity,
    reconcile::{Pace, Reconciler},
    report::{About, Measures, Notice, Notices, Report, Told},
    serve,
    watch::{
        Event,
        convert::Converter,
        kube::{Exchange, Servers},
    },
};

/// Events that may wait for the loop before their sources have to.
const QUEUE: usize = 4096;

/// Where the kernel's connection tracking is set.
const NETFILTER: &str = "/proc/sys/net/netfilter";

/// Be the agent until SIGTERM or SIGINT, which leave everything attached.
pub fn run(flags: Flags) -> Result<ExitCode> {
    let hostname = nix::unistd::gethostname().context("read the host's name")?;
    let config = Config::resolve(
        flags,
        |name| std::env::var(name).ok(),
        |path| fs::read_to_string(path),
        &hostname.to_string_lossy(),
    )?;
    logging::start(config.verbosity, config.log_format)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    match &config.action {
        Action::Write(path) => {
            let text = serde_yaml_ng::to_string(&config.effective)?;
            fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
        }
        Action::Init => {
            bpffs::mount(&config.pin_path)?;
            conntrack::set(&config.conntrack, &conntrack::Places::here());
        }
        Action::Cleanup => cleanup(&config.pin_path, &config.run_path)?,
        Action::Run => runtime()?.block_on(agent(config))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Remove everything of ours below a pin path; refused while an agent runs that would put it back.
pub fn cleanup(pin_path: &Path, run_path: &Path) -> Result<()> {
    let place = Place::new(pin_path, run_path);
    let _lock = place.try_lock()?.map_err(|holder| {
        anyhow!(
            "an agent ({holder}) runs with the pins {} and would put everything back: stop it first",
            pin_path.display()
        )
    })?;
    dataplane::cleanup(pin_path)?;
    place.remove();
    Ok(())
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the async runtime")
}

async fn agent(config: Config) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let stopped = async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    tokio::pin!(stopped);

    adjust_oom_score(config.oom_score_adj);
    let conntrack = conntrack::Places::here();
    conntrack::set(&config.conntrack, &conntrack);
    let place = Place::new(&config.pin_path, &config.run_path);
    let _lock = tokio::select! {
        lock = place.lock() => lock?,
        _ = &mut stopped => return Ok(()),
    };
    let options = options(&config)?;
    let mut kernel = Kernel::open(&options, &Capacity::NONE).context("prepare the tables and programs")?;
    let (to_log, log) = mpsc::channel(1);
    kernel.pass_log_to(move |lines| drop(to_log.try_send(lines)))?;

    let mut sources = vec![
        Source::Services,
        Source::Slices,
        Source::Node,
        Source::LocalRoutes,
        Source::HostSources,
        Source::Listeners,
    ];
    sources.extend(config.settings.packet_plane.then_some(Source::Links));
    if config.settings.pod_opt_out {
        sources.extend([Source::Pods, Source::Groups]);
    }
    sources.extend((config.settings.profile == Profile::Nftables).then_some(Source::ServiceCidrs));
    let servers = api_servers(&config.origins).await;
    sources.extend(servers.as_ref().filter(|it| it.may_move()).map(|_| Source::ApiServers));
    let (to_report, report) = watch::channel(Report::new(&config.settings.node_name, &sources));
    let measures = Measures::default();
    let (to_loop, events) = mpsc::channel(QUEUE);
    let (stop_loop, loop_stop) = oneshot::channel::<()>();
    let pace = Pace { read_back: config.read_back, ..Pace::default() };
    let mut settings = config.settings.clone();
    settings.reserved.api_servers = servers.as_ref().map(Servers::known).unwrap_or_default();
    let model = Model::new(settings);
    let (to_ask, asked) = watch::channel(Questions::default());
    let reconciler = Reconciler::new(model, kernel, pace, to_report, measures.clone()).asking(to_ask);
    // On a thread of its own: a fence, a large table or a slow scrape never wait for each other.
    let reconcile = std::thread::Builder::new()
        .name("reconcile".into())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
            runtime.block_on(reconciler.run(events, async {
                let _ = loop_stop.await;
            }));
            std::io::Result::Ok(())
        })
        .context("start the reconcile thread")?;

    let (notices, to_tell) = Notices::new();
    notices.tell(starting());
    let (pin_path, flows_pinned) = (config.pin_path.clone(), config.pin_path.clone());
    let packet_plane = config.settings.packet_plane;
    let of_sources = measures.clone();
    let handover = handover::follow(config.pin_path.clone(), report.clone(), measures.clone());
    let sweep = sweep::follow(config.pin_path.clone(), report.clone());
    let face = serve::Face {
        report,
        measures,
        notices,
        counters: Box::new(move || dataplane::counters(&pin_path)),
        flows: Box::new(move || flow_rooms(&flows_pinned).map_err(std::io::Error::other)),
        sync_period: config.sync_period,
        mode: config.settings.profile.name(),
        configuration: config.effective.clone(),
        flags: config.flags.clone(),
    };
    let serving = serve::Listeners {
        health: config.healthz,
        metrics: config.metrics,
        local: place.socket(),
        hard_fail: config.bind_hard_fail,
    };
    let result = tokio::select! {
        signal = &mut stopped => {
            tracing::info!("{signal}: stopping; what is attached stays and serves");
            Ok(())
        }
        error = sources_of(&config, servers, options.cgroup.clone(), to_loop, asked, to_tell, &of_sources) => Err(error),
        error = serve::serve(Arc::new(face), serving) => Err(error),
        () = follow_log(log) => Ok(()),
        () = handover, if packet_plane => Ok(()),
        () = conntrack::set_when_loaded(&config.conntrack, &conntrack) => Ok(()),
        () = sweep, if packet_plane => Ok(()),
        error = config_changed(config.file.as_deref()) => Err(error),
    };
    drop(stop_loop);
    let ended = tokio::task::spawn_blocking(move || reconcile.join()).await;
    let result = result.and(match ended {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(error))) => Err(error.into()),
        _ => Err(anyhow!("the reconcile thread panicked; what is attached stays and serves")),
    });
    place.remove_socket();
    result
}

/// Where no Service but the cluster's own may stand before the API server, as far as it is known at the start.
async fn api_servers(origins: &Origins) -> Option<Servers> {
    let Origins::ApiServer { kubeconfig, url } = origins else { return None };
    let mut servers = Servers::new(kubeconfig.as_deref(), url.as_deref()).await?;
    // What is wrong is told by who looks again.
    servers.look_up().await;
    Some(servers)
}

/// What the programs log, of each generation of them.
async fn follow_log(mut log: mpsc::Receiver<dataplane::Lines>) {
    let mut following = tokio::task::JoinSet::new();
    while let Some(lines) = log.recv().await {
        // The generation before has been swapped out.
        following.abort_all();
        following.spawn(async move {
            if let Err(error) = lines.follow().await {
                tracing::warn!("the programs' log can't be read any more: {error}");
            }
        });
    }
    std::future::pending().await
}

async fn config_changed(file: Option<&Path>) -> anyhow::Error {
    let Some(file) = file else { return std::future::pending().await };
    match changed::changed(file).await {
        Ok(()) => anyhow!("{} has changed: ending, to be started anew with it", file.display()),
        Err(error) => {
            tracing::warn!("a changed configuration will not be noticed: {error:#}");
            std::future::pending().await
        }
    }
}

/// Follow all sources; returns only what none of them survives.
async fn sources_of(
    config: &Config,
    servers: Option<Servers>,
    cgroup: PathBuf,
    to: mpsc::Sender<Event>,
    asked: watch::Receiver<Questions>,
    to_tell: mpsc::Receiver<Told>,
    measures: &Measures,
) -> anyhow::Error {
    let mut converter = Converter::new(&config.settings.node_name);
    converter.external_ips = config.external_ips;
    converter.pods = config.settings.pod_opt_out;
    let cluster = cluster(config, servers, converter, to.clone(), to_tell, measures);
    let routes = crate::watch::routes::follow(to.clone());
    let host_sources = crate::watch::host_sources::follow(asked.clone(), to.clone());
    let (asked_of_groups, to_groups) = (asked.clone(), to.clone());
    let listeners = crate::watch::listeners::follow(asked, to.clone());
    let groups = async {
        if config.settings.pod_opt_out {
            crate::watch::groups::follow(cgroup, asked_of_groups, to_groups).await;
        } else {
            drop(to_groups);
            std::future::pending::<()>().await;
        }
    };
    let links = async {
        if config.settings.packet_plane {
            crate::watch::links::follow(to).await
        } else {
            drop(to);
            std::future::pending().await
        }
    };
    let ended = |result: Result<()>, what: &'static str| match result {
        Ok(()) => anyhow!("netlink has nothing more to say"),
        Err(error) => error.context(what),
    };
    tokio::select! {
        error = cluster => error,
        result = host_sources => ended(result, "follow from where the node dials"),
        () = listeners => ended(Ok(()), "follow the node's listeners"),
        () = groups => ended(Ok(()), "follow the cgroups of pods"),
        result = routes => ended(result, "follow the local routing table"),
        result = links => ended(result, "follow the network devices"),
    }
}

/// What the cluster says, and what is told to it.
async fn cluster(
    config: &Config,
    servers: Option<Servers>,
    converter: Converter,
    to: mpsc::Sender<Event>,
    to_tell: mpsc::Receiver<Told>,
    measures: &Measures,
) -> anyhow::Error {
    match &config.origins {
        Origins::Manifests(folder) => {
            // Nobody is there to be told.
            drop(to_tell);
            match crate::watch::folder::follow(folder.clone(), converter, to).await {
                Ok(()) => anyhow!("{} is not followed any more", folder.display()),
                Err(error) => error.context(format!("follow the manifests in {}", folder.display())),
            }
        }
        Origins::ApiServer { kubeconfig, url } => {
            let requests = measures.requests().clone();
            let heard = move |Exchange { method, host, code, took, bytes }: Exchange| {
                requests.request(method.as_str(), &host, code.map(|code| code.as_u16()), took, bytes);
            };
            match crate::watch::kube::client(kubeconfig.as_deref(), url.as_deref(), Arc::new(heard)).await {
                Ok(client) => {
                    let asks = config.settings.profile == Profile::Nftables;
                    let servers = servers.map(|servers| servers.follow(to.clone()));
                    let servers = async {
                        if let Some(servers) = servers {
                            servers.await;
                        }
                    };
                    let follow =
                        crate::watch::kube::follow(client.clone(), converter, config.relist, asks, to);
                    tokio::join!(follow, servers, events::tell(client, &config.settings.node_name, to_tell));
                    anyhow!("the API server is not followed any more")
                }
                Err(error) => error.context("connect to the API server"),
            }
        }
    }
}

fn starting() -> Notice {
    let (about, note) = (About::Node, String::new());
    Notice { about, warning: false, reason: "Starting", action: "StartKubeProxy", note }
}

fn options(config: &Config) -> Result<Options> {
    let cgroup = match &config.cgroup {
        Some(path) => path.clone(),
        None => find_cgroup()?,
    };
    let kind = statfs(&cgroup).with_context(|| format!("look at the cgroup {}", cgroup.display()))?;
    ensure!(
        kind.filesystem_type() == CGROUP2_SUPER_MAGIC,
        "{} is not in a cgroup2 file system: --cgroup names the root of one",
        cgroup.display()
    );
    Ok(Options {
        pin_path: config.pin_path.clone(),
        cgroup,
        socket_plane: config.socket_plane,
        udp_timeout_seconds: udp_timeout(config.udp_timeout),
        guards: config.settings.guards(),
        timeouts: config.conntrack.timeouts(),
        packet_plane: config.settings.packet_plane,
        flow_keys: config.flow_keys,
        masquerade_mark: config.masquerade_mark,
        localnet: config.settings.serves_loopback(),
        log_level: config.bpf_log_level,
    })
}

fn find_cgroup() -> Result<PathBuf> {
    let mounts = "/proc/self/mountinfo";
    let text = fs::read_to_string(mounts).with_context(|| format!("read {mounts}"))?;
    cgroup::mount_point(&text).context(
        "no cgroup2 is mounted: `mount -t cgroup2 none /sys/fs/cgroup/unified`, or name its root with --cgroup",
    )
}

/// netfilter's, where KubeProxyConfiguration does not say.
fn udp_timeout(configured: Option<Duration>) -> u32 {
    const DEFAULT: u32 = 30;
    let seconds = configured.map(|timeout| u32::try_from(timeout.as_secs().max(1)).unwrap_or(u32::MAX));
    seconds.unwrap_or_else(|| {
        let text = fs::read_to_string(format!("{NETFILTER}/nf_conntrack_udp_timeout"));
        text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(DEFAULT)
    })
}

fn adjust_oom_score(score: i16) {
    if let Err(error) = fs::write("/proc/self/oom_score_adj", score.to_string()) {
        tracing::debug!("oom_score_adj stays as it is: {error}");
    }
}
