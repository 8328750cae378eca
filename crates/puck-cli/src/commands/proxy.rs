//! `puck proxy`: ports of a sprite as ports of this host, or one connection on standard input and output.

use crate::{
    client::Client,
    context::Context,
    exit::{Exit, UsageError},
    output, spinner,
    tunnel::{Forwards, Remote, Tunnel, listen},
};
use anyhow::Context as _;
use api::name::SpriteName;
use std::{net::Ipv4Addr, str::FromStr};
use tokio::{net::TcpListener, task::JoinSet};

/// Where a port of a sprite is looked for unless an address is given.
const LOCALHOST: &str = "localhost";

/// Reach ports of a sprite
///
/// Each PORT is listened on at this host's loopback address, and every connection to it goes to the same port in the sprite;
/// LOCAL:REMOTE and LOCAL:ADDRESS:REMOTE say otherwise, and 0 as LOCAL takes any free port. Connections keep the sprite awake. Runs until it is interrupted.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  puck proxy 3000\n  puck proxy 15432:5432 8080\n  \
                  ssh -o ProxyCommand='puck proxy -s web -W %h:%p' sprite@localhost")]
pub struct Proxy {
    /// PORT, LOCAL:REMOTE or LOCAL:ADDRESS:REMOTE; several if wanted
    #[arg(value_name = "PORTS", required_unless_present = "stdio")]
    mappings: Vec<Mapping>,

    /// Connect standard input and output with [HOST]:PORT instead
    #[arg(short = 'W', long, value_name = "HOST:PORT", conflicts_with = "mappings")]
    stdio: Option<Destination>,
}

/// Whether ports that open in the sprite are forwarded.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Forwarding {
    /// Do not listen on this host for ports that open in the sprite
    #[arg(long)]
    no_port_forward: bool,
}

impl Forwarding {
    pub(super) fn forwards(&self, client: &Client, sprite: &SpriteName) -> Forwards {
        if self.no_port_forward {
            Forwards::none()
        } else {
            Forwards::to(client.endpoint(), sprite)
        }
    }
}

impl Proxy {
    pub(crate) async fn run(&self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client()?;
        let sprite = context.sprite()?;
        if let Some(Destination(remote)) = &self.stdio {
            let opening = Tunnel::open(client.endpoint(), &sprite, remote);
            let tunnel = spinner::during(format!("Connecting to {sprite}"), opening).await;
            let tunnel = tunnel.with_context(|| format!("connect to {remote} in {sprite}"))?;
            tunnel.relay(tokio::io::stdin(), tokio::io::stdout()).await.context("write")?;
            return Ok(Exit::SUCCESS);
        }
        let mut listening = JoinSet::new();
        for Mapping { local, remote } in &self.mappings {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, *local)).await;
            let listener = listener.with_context(|| format!("listen on port {local}"))?;
            let address = listener.local_addr().context("see which port it is")?;
            output::line(&format!("{address} -> {sprite}:{}", remote.port))?;
            listening.spawn(listen(
                client.endpoint().clone(),
                sprite.clone(),
                remote.clone(),
                listener,
            ));
        }
        listening.join_all().await;
        Ok(Exit::SUCCESS)
    }
}

/// A port here and one there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mapping {
    local: u16,
    remote: Remote,
}

impl FromStr for Mapping {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = || UsageError("expected PORT, LOCAL:REMOTE or LOCAL:ADDRESS:REMOTE".into());
        let (local, rest) = text.split_once(':').unwrap_or((text, text));
        let local = local.parse().map_err(|_not_a_port| expected())?;
        let Destination(remote) = rest.parse().map_err(|_no_place| expected())?;
        Ok(Self { local, remote })
    }
}

/// `[HOST]:PORT`, or only a port.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Destination(Remote);

impl FromStr for Destination {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        match port.parse() {
            Ok(port) if port > 0 => {
                let host = if host.is_empty() { LOCALHOST } else { host };
                Ok(Self(Remote { host: host.into(), port }))
            }
            _ => Err(UsageError("expected HOST:PORT".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Destination, Mapping};

    #[test]
    fn a_mapping_has_up_to_three_parts() {
        for (text, local, remote) in [
            ("80", 80, "localhost:80"),
            ("8080:80", 8080, "localhost:80"),
            ("0:80", 0, "localhost:80"),
            ("1:10.0.0.1:80", 1, "10.0.0.1:80"),
            ("1:[::1]:80", 1, "[::1]:80"),
        ] {
            let mapping: Mapping = text.parse().expect("a mapping");
            assert_eq!(
                (mapping.local, mapping.remote.to_string().as_str()),
                (local, remote),
                "{text}"
            );
        }
        for bad in ["", "0", "x", "80:", ":80", "80:0", "65536", "1:2:3:x", "-1"] {
            assert!(bad.parse::<Mapping>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_destination_may_leave_out_the_host() {
        for (text, remote) in [
            (":22", "localhost:22"),
            ("22", "localhost:22"),
            ("[::1]:22", "[::1]:22"),
            ("10.0.0.1:22", "10.0.0.1:22"),
        ] {
            let Destination(parsed) = text.parse().expect("a destination");
            assert_eq!(parsed.to_string(), remote, "{text}");
        }
    }
}
