//! `puck policy`: what a sprite may reach and use.

use crate::{client::Client, context::Context, exit::Exit, output};
use anyhow::Context as _;
use api::{
    name::SpriteName,
    policy::{
        Action, Domain, MemoryPolicy, NetworkPolicy, NetworkRule, PrivilegesPolicy, Profile,
        ResourcesPolicy,
    },
};
use serde::{Serialize, de::DeserializeOwned};

/// See and set what a sprite may reach and use
///
/// A change is in force when the command returns, and does not wake the sprite.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  puck policy network\n  puck policy network --defaults --allow '*.example.com' --deny bad.example.com\n  \
                        puck policy network --unrestricted\n  puck policy memory --limit-mb 512\n  puck policy privileges --minimal"
)]
pub struct Policy {
    #[command(subcommand)]
    command: PolicyCommand,
}

#[derive(Debug, clap::Subcommand)]
enum PolicyCommand {
    /// Which names the sprite may look up and connect to; without options, show it
    Network(Network),
    /// How much memory its programs may use; without options, show it
    Memory(Memory),
    /// What its programs may be, from their next start; without options, show it
    Privileges(Privileges),
}

#[derive(Debug, clap::Args)]
struct Network {
    /// Allow a name, or with `*.` everything below one, or with `*` everything; may be repeated. What is not allowed is refused
    #[arg(long, value_name = "DOMAIN")]
    allow: Vec<Domain>,

    /// Refuse one although a wider rule allows it; may be repeated
    #[arg(long, value_name = "DOMAIN")]
    deny: Vec<Domain>,

    /// Allow the hosts that developers usually need
    #[arg(long)]
    defaults: bool,

    /// Allow everything, private addresses too
    #[arg(long, conflicts_with_all = ["allow", "deny", "defaults"])]
    unrestricted: bool,
}

#[derive(Debug, clap::Args)]
struct Memory {
    /// The limit in MiB
    #[arg(long, value_name = "MIB")]
    limit_mb: Option<u64>,

    /// Let them use more, up to what the server gives each sprite
    #[arg(long, requires = "limit_mb")]
    autoscale: bool,

    /// Back to what the server gives each sprite
    #[arg(long, conflicts_with = "limit_mb")]
    reset: bool,
}

#[derive(Debug, clap::Args)]
struct Privileges {
    /// No program gains rights by running another: `sudo` has no effect
    #[arg(long)]
    no_new_privileges: bool,

    /// That, and nothing for root that other users may not do
    #[arg(long, conflicts_with = "no_new_privileges")]
    minimal: bool,

    /// Back to what the server gives each sprite
    #[arg(long, conflicts_with_all = ["no_new_privileges", "minimal"])]
    reset: bool,
}

impl Memory {
    /// What is asked for; `None` if nothing is.
    fn policy(&self) -> Option<ResourcesPolicy> {
        let memory = self.limit_mb.map(|limit_mb| {
            let autoscale = self.autoscale;
            MemoryPolicy { limit_mb, autoscale }
        });
        (self.reset || memory.is_some()).then_some(ResourcesPolicy { memory })
    }
}

impl Privileges {
    /// What is asked for; `None` if nothing is.
    fn policy(&self) -> Option<PrivilegesPolicy> {
        let profile = if self.minimal { Profile::Minimal } else { Profile::Default };
        let no_new_privileges = self.no_new_privileges;
        let asked = self.minimal || self.no_new_privileges || self.reset;
        asked.then_some(PrivilegesPolicy { profile, no_new_privileges, devices: Vec::new() })
    }
}

impl Network {
    /// The rules that are asked for; `None` if none are.
    fn policy(&self) -> Option<NetworkPolicy> {
        let rule =
            |action| move |domain: &Domain| NetworkRule::Domain { domain: domain.clone(), action };
        let mut rules: Vec<NetworkRule> = Vec::new();
        rules.extend(self.defaults.then_some(NetworkRule::Defaults));
        rules.extend(self.allow.iter().map(rule(Action::Allow)));
        rules.extend(self.deny.iter().map(rule(Action::Deny)));
        (self.unrestricted || !rules.is_empty()).then_some(NetworkPolicy { rules })
    }
}

impl Policy {
    pub(crate) async fn run(&self, context: &Context) -> anyhow::Result<Exit> {
        let client = context.client()?;
        let sprite = context.sprite()?;
        match &self.command {
            PolicyCommand::Network(network) => {
                show_or_set(&client, &sprite, "network", network.policy()).await?;
            }
            PolicyCommand::Memory(memory) => {
                show_or_set(&client, &sprite, "resources", memory.policy()).await?;
            }
            PolicyCommand::Privileges(privileges) => {
                show_or_set(&client, &sprite, "privileges", privileges.policy()).await?;
            }
        }
        Ok(Exit::SUCCESS)
    }
}

/// Sets a policy, or without one shows what it is.
async fn show_or_set<P: Serialize + DeserializeOwned + Sync>(
    client: &Client,
    sprite: &SpriteName,
    kind: &str,
    policy: Option<P>,
) -> anyhow::Result<()> {
    match policy {
        Some(policy) => client
            .set_policy(sprite, kind, &policy)
            .await
            .with_context(|| format!("set the {kind} policy of {sprite}")),
        None => {
            let policy: P = client.policy(sprite, kind).await?;
            Ok(output::print(&output::json(&policy)?)?)
        }
    }
}
