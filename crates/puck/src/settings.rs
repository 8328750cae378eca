//! Everything that a user may set about a server: flags, defaults and what they mean. Nothing else reads the environment,
//! but for the bucket's credentials, which are AWS's own variables, and the name of the file of master keys.

use crate::{
    bucket::{BucketUrl, ParseBucketError},
    keys::{KeyFileArgs, KeyFileError, MasterKeys},
};
use api::name::{NameError, OrgName};
use guest::protocol::Limits;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

/// The most machines in the pool.
const POOL_MAX: usize = 64;

/// Where the host's name servers are named.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The most name servers that are passed on; a resolver reads no more.
const DNS_SERVERS_MAX: usize = 3;

/// The name of the guest agent's executable, beside this one.
const AGENT: &str = "puck-guest";

/// Run a server: orchestrator and worker in one process
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DevArgs {
    /// The directory for everything that the server keeps on this host
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// The address to serve the API on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// s3://name/prefix or a directory; without it `bucket` in the data directory
    ///
    /// Endpoint, region and keys of an S3 bucket come from the usual AWS environment variables (AWS_ENDPOINT_URL,
    /// AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY).
    #[arg(long, value_name = "URL")]
    bucket: Option<String>,
    #[command(flatten)]
    key_file: KeyFileArgs,
    /// How long a sprite without activity stays awake
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = idle_timeout)]
    idle_timeout: Duration,
    /// How long a destroyed sprite can be had back with `puck undelete`; 0s removes it at once
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = api::duration::parse)]
    undelete: Duration,
    /// How many empty machines wait for the next create
    #[arg(long, value_name = "COUNT", default_value_t = 4, value_parser = pool_size)]
    pool: usize,
    /// Take the bucket from an owner that did not release it and is known to be dead
    #[arg(long)]
    take_over: bool,
    /// The organization that the token is for
    #[arg(long, value_name = "NAME", default_value = "local", value_parser = organization)]
    organization: OrgName,
    /// The most MiB of memory of each sprite
    #[arg(long, value_name = "MIB", default_value_t = 4096, value_parser = clap::value_parser!(u64).range(64..=1 << 20))]
    memory: u64,
    /// The most processes and threads of each sprite
    #[arg(long, value_name = "COUNT", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(64..=1 << 20))]
    processes: u32,
    /// The most MiB of local disk for each sprite's cache
    #[arg(long, value_name = "MIB", default_value_t = 10 << 10, value_parser = clap::value_parser!(u64).range(64..=100 << 10))]
    cache: u64,
    /// A name server for sprites, may be repeated; without it those of this host
    #[arg(long, value_name = "IP")]
    dns: Vec<IpAddr>,
    /// The guest agent; without it the `puck-guest` beside this program
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

/// What a server is run with.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) data: PathBuf,
    pub(crate) listen: SocketAddr,
    pub(crate) bucket: BucketUrl,
    pub(crate) master_keys: Option<MasterKeys>,
    pub(crate) idle_timeout: Duration,
    pub(crate) undelete: Duration,
    pub(crate) pool: usize,
    pub(crate) take_over: bool,
    pub(crate) org: OrgName,
    pub(crate) limits: Limits,
    pub(crate) cache_bytes_max: u64,
    pub(crate) dns: Vec<IpAddr>,
    pub(crate) agent: PathBuf,
}

/// Why the arguments make no settings.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    /// The bucket is not one.
    #[error(transparent)]
    Bucket(#[from] ParseBucketError),
    /// The master keys cannot be read.
    #[error(transparent)]
    Keys(#[from] KeyFileError),
    /// The guest agent is not where it is expected.
    #[error("no guest agent at {0}; build it with `make build`, or name it with --agent")]
    Agent(PathBuf),
    /// This program does not know where it is.
    #[error("find this program's own directory")]
    Program(#[source] io::Error),
    /// The host's name servers cannot be read.
    #[error("read the name servers in {RESOLV_CONF}; name one with --dns")]
    Dns(#[source] io::Error),
}

impl DevArgs {
    /// The settings, with everything filled in that was not said.
    pub(crate) fn settings(self) -> Result<Settings, SettingsError> {
        let bucket = bucket(self.bucket.as_deref(), &self.data)?;
        let agent = match self.agent {
            Some(agent) => agent,
            None => std::env::current_exe().map_err(SettingsError::Program)?.with_file_name(AGENT),
        };
        if !agent.is_file() {
            return Err(SettingsError::Agent(agent));
        }
        let dns = if self.dns.is_empty() {
            name_servers(&std::fs::read_to_string(RESOLV_CONF).map_err(SettingsError::Dns)?)
        } else {
            self.dns
        };
        Ok(Settings {
            data: self.data,
            listen: self.listen,
            bucket,
            master_keys: self.key_file.read()?,
            idle_timeout: self.idle_timeout,
            undelete: self.undelete,
            pool: self.pool,
            take_over: self.take_over,
            org: self.organization,
            limits: Limits { memory_bytes: self.memory << 20, pids: self.processes },
            cache_bytes_max: self.cache << 20,
            dns,
            agent,
        })
    }
}

/// The bucket that is named, or the one in the data directory.
pub(crate) fn bucket(url: Option<&str>, data: &Path) -> Result<BucketUrl, ParseBucketError> {
    match url {
        Some(url) => url.parse(),
        None => Ok(BucketUrl::Directory(data.join("bucket"))),
    }
}

fn idle_timeout(text: &str) -> Result<Duration, String> {
    let timeout = api::duration::parse(text).map_err(|error| error.to_string())?;
    if timeout >= Duration::from_secs(1) { Ok(timeout) } else { Err("at least 1s".to_owned()) }
}

fn pool_size(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|size| *size <= POOL_MAX)
        .ok_or_else(|| format!("expected 0 to {POOL_MAX}"))
}

fn organization(text: &str) -> Result<OrgName, NameError> {
    text.parse()
}

/// The servers that a resolver would use.
fn name_servers(resolv_conf: &str) -> Vec<IpAddr> {
    resolv_conf
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|address| address.trim().parse().ok())
        .take(DNS_SERVERS_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{idle_timeout, name_servers};

    #[test]
    fn name_servers_are_found_among_the_rest() {
        let text = "# nameserver 9.9.9.9\nsearch example.org\nnameserver 10.0.0.1\n nameserver\tfd00::1\nnameserver x%eth0\n";
        let found: Vec<String> = name_servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.1", "fd00::1"]);
    }

    #[test]
    fn idle_times_have_a_least() {
        assert!(idle_timeout("1s").is_ok() && idle_timeout("2m").is_ok());
        assert!(
            idle_timeout("0").is_err()
                && idle_timeout("100ms").is_err()
                && idle_timeout("x").is_err()
        );
    }
}
