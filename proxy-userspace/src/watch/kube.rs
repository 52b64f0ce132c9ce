//! The API server as a source: Services, EndpointSlices, the own Node and ServiceCIDRs, each listed once and watched from there on.
//!
//! Objects stay the JSON that the server sent until [`Converter`] has read the fields that we know: one that can't be
//! read is skipped and named, and neither its list nor its watch ends for it.

mod answer;
mod ask;
mod exchange;
mod fault;
mod servers;
mod stream;
#[cfg(test)]
mod tests;

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use kube::{
    Client, Config,
    client::ClientBuilder,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::sync::mpsc::Sender;

use self::{
    exchange::Telling,
    stream::{Pace, Stream},
};
pub use self::{
    exchange::{Exchange, Heard},
    servers::Servers,
};
use super::{
    Event,
    convert::{Converter, Kind},
};

/// A client by the kubeconfig, or by what a pod finds if there is none. `url` replaces the server's address in either.
/// The token's file is read again as it is renewed. `heard` is told of every request.
///
/// # Errors
/// The kubeconfig or the pod's files can't be read, or the address is none; with the fix.
pub async fn client(kubeconfig: Option<&Path>, url: Option<&str>, heard: Heard) -> Result<Client> {
    let config = configuration(kubeconfig, url).await?;
    let host = config.cluster_url.authority().map_or("none", |authority| authority.as_str()).into();
    let builder = ClientBuilder::try_from(config).context("prepare the connection to the API server")?;
    Ok(builder.with_layer(&Telling { host, heard }).build())
}

async fn configuration(kubeconfig: Option<&Path>, url: Option<&str>) -> Result<Config> {
    let mut config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path);
            let file = file.with_context(|| format!("read the kubeconfig {}", path.display()))?;
            let has_proxy = file.clusters.iter().flat_map(|it| &it.cluster).any(|it| it.proxy_url.is_some());
            let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
            let mut config = config.with_context(|| format!("use the kubeconfig {}", path.display()))?;
            if !has_proxy {
                // One of the environment is for the way out of the cluster.
                config.proxy_url = None;
            }
            config
        }
        None => {
            // The address of the environment is replaced below, and may be missing then.
            let config = if url.is_some() { Config::incluster_dns() } else { Config::incluster() };
            config.context(
                "use the pod's service account: without --kubeconfig the agent runs in a pod with a mounted token, \
                 and finds the server by --master or KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT",
            )?
        }
    };
    if let Some(url) = url {
        let full = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
        config.cluster_url =
            full.parse().with_context(|| format!("{url:?} is no address of an API server"))?;
    }
    // A watch may be silent for long; how long is looked after where it is read.
    config.read_timeout = None;
    Ok(config)
}

/// Follows these kinds until nobody listens. Errors are told as [`super::What::Broken`], and what was known stays.
/// `relist`: how often to ask for complete lists again, in case the server forgot to tell us something.
/// `service_cidrs`: whether anybody here asks for those.
pub async fn follow(
    client: Client,
    converter: Converter,
    relist: Option<Duration>,
    service_cidrs: bool,
    to: Sender<Event>,
) {
    let follow = |kind| {
        Stream::new(client.clone(), converter.clone(), kind, relist, Pace::default(), to.clone()).follow()
    };
    let pods = async {
        if converter.pods {
            follow(Kind::Pod).await;
        }
    };
    let service_cidrs = async {
        if service_cidrs {
            follow(Kind::ServiceCidr).await;
        }
    };
    tokio::join!(follow(Kind::Slice), follow(Kind::Service), follow(Kind::Node), pods, service_cidrs);
}
