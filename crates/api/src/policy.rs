//! Policies of a sprite: what it may reach. Text from a client becomes rules here or is refused.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// The most rules of a network policy.
pub const RULES_MAX: usize = 256;

/// The longest name of the domain name system, without the dot at its end.
const NAME_BYTES_MAX: usize = 253;

/// The longest label of such a name.
const LABEL_BYTES_MAX: usize = 63;

/// Every policy of a sprite.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policies {
    /// What it may reach.
    #[serde(default)]
    pub network: NetworkPolicy,
    /// What it may use.
    #[serde(default)]
    pub resources: ResourcesPolicy,
    /// What its programs may be.
    #[serde(default)]
    pub privileges: PrivilegesPolicy,
}

/// What the programs of a sprite may be. It counts for programs that start after it was set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct PrivilegesPolicy {
    /// How much root of the sprite may do.
    pub profile: Profile,
    /// Devices that programs must find, by their names in `/dev`, at most [`DEVICES`].
    pub devices: Vec<String>,
    /// Whether no program gains rights by running another: `sudo` has no effect.
    pub no_new_privileges: bool,
}

/// How much root of a sprite may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// What the server gives every sprite: [`Self::Standard`].
    #[default]
    #[serde(rename = "")]
    Default,
    /// Nothing that other users may not do, and nobody becomes root.
    Minimal,
    /// What package managers and daemons need.
    Standard,
    /// What administrators of a kernel may do.
    Privileged,
}

/// The devices that every sprite has.
pub const DEVICES: &[&str] = &["full", "null", "random", "tty", "urandom", "zero"];

/// What a sprite may use. What is not said is as the server has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourcesPolicy {
    /// Memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryPolicy>,
}

/// How much memory the programs of a sprite may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryPolicy {
    /// The limit in MiB.
    pub limit_mb: u64,
    /// Whether they may use more while the server lets them: up to what it gives a sprite without a policy.
    #[serde(default)]
    pub autoscale: bool,
}

/// The least memory of a sprite, in MiB.
pub const MEMORY_LIMIT_MB_MIN: u64 = 64;

/// Which names a sprite may look up and connect to. Without rules it is not restricted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkPolicy {
    /// The rules, in no order that matters.
    pub rules: Vec<NetworkRule>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawRule", into = "RawRule")]
pub enum NetworkRule {
    /// What happens to names of a pattern. The most specific pattern of a name counts: itself, then the longest `*.`, then `*`.
    Domain {
        /// The pattern.
        domain: Domain,
        /// What happens to them.
        action: Action,
    },
    /// The hosts that developers usually need ([`DEFAULTS`]).
    Defaults,
}

/// What happens to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is answered and can be connected to.
    Allow,
    /// It is refused.
    Deny,
}

/// The names that `{"include":"defaults"}` allows.
pub const DEFAULTS: &[&str] = &[
    // Source.
    "github.com",
    "*.github.com",
    "*.githubusercontent.com",
    "*.githubassets.com",
    "ghcr.io",
    "gitlab.com",
    "*.gitlab.com",
    "bitbucket.org",
    "*.bitbucket.org",
    // Packages.
    "registry.npmjs.org",
    "registry.yarnpkg.com",
    "nodejs.org",
    "*.nodejs.org",
    "pypi.org",
    "*.pypi.org",
    "files.pythonhosted.org",
    "crates.io",
    "*.crates.io",
    "static.rust-lang.org",
    "proxy.golang.org",
    "sum.golang.org",
    "go.dev",
    "dl.google.com",
    "rubygems.org",
    "*.rubygems.org",
    "repo.maven.apache.org",
    "repo1.maven.org",
    "hex.pm",
    "*.hex.pm",
    "packagist.org",
    "*.packagist.org",
    "deb.debian.org",
    "security.debian.org",
    "*.debian.org",
    "archive.ubuntu.com",
    "security.ubuntu.com",
    // Images.
    "docker.io",
    "*.docker.io",
    "*.docker.com",
    "production.cloudflare.docker.com",
    "quay.io",
    "*.quay.io",
    // Models.
    "api.anthropic.com",
    "claude.ai",
    "api.openai.com",
    "generativelanguage.googleapis.com",
    "openrouter.ai",
    "api.mistral.ai",
    "api.groq.com",
    "huggingface.co",
    "*.huggingface.co",
];

/// A rule as it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    domain: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    action: Option<Action>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    include: Option<String>,
}

/// Why something is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseRuleError {
    /// The pattern is not one.
    #[error("{0:?} is no domain: expected a name, `*.` and a name, or `*`")]
    Domain(String),
    /// A list that does not exist.
    #[error("{0:?} cannot be included, only `defaults`")]
    Include(String),
    /// A rule that is neither, or both.
    #[error("a rule has either `domain` and `action`, or `include`")]
    Shape,
}

impl TryFrom<RawRule> for NetworkRule {
    type Error = ParseRuleError;

    fn try_from(raw: RawRule) -> Result<Self, ParseRuleError> {
        match (raw.domain, raw.action, raw.include) {
            (Some(domain), Some(action), None) => {
                Ok(Self::Domain { domain: domain.parse()?, action })
            }
            (None, None, Some(include)) if include == "defaults" => Ok(Self::Defaults),
            (None, None, Some(include)) => {
                Err(ParseRuleError::Include(include.chars().take(NAME_BYTES_MAX).collect()))
            }
            _ => Err(ParseRuleError::Shape),
        }
    }
}

impl From<NetworkRule> for RawRule {
    fn from(rule: NetworkRule) -> Self {
        match rule {
            NetworkRule::Domain { domain, action } => {
                Self { domain: Some(domain.0), action: Some(action), include: None }
            }
            NetworkRule::Defaults => {
                Self { domain: None, action: None, include: Some("defaults".to_owned()) }
            }
        }
    }
}

/// A pattern of names: a name, `*.` and a name for everything below it, or `*`. In lower case, without a dot at its end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domain(String);

impl Domain {
    /// The pattern.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Domain {
    type Err = ParseRuleError;

    fn from_str(text: &str) -> Result<Self, ParseRuleError> {
        let rooted = text.strip_suffix('.').filter(|rest| *rest != "*");
        let pattern = rooted.unwrap_or(text).to_ascii_lowercase();
        let name = pattern.strip_prefix("*.").unwrap_or(&pattern);
        let is_label = |label: &str| {
            (1..=LABEL_BYTES_MAX).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        let is_name = name.len() <= NAME_BYTES_MAX && name.split('.').all(is_label);
        if pattern == "*" || is_name {
            Ok(Self(pattern))
        } else {
            Err(ParseRuleError::Domain(text.chars().take(NAME_BYTES_MAX).collect()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{DEFAULTS, Domain, NetworkPolicy};
    use serde_json::json;

    #[test]
    fn rules_are_written_as_they_were_read() {
        let policy = json!({ "rules": [
            { "domain": "example.com", "action": "allow" },
            { "domain": "*.example.com", "action": "deny" },
            { "domain": "*", "action": "allow" },
            { "include": "defaults" },
        ]});
        let parsed: NetworkPolicy = serde_json::from_value(policy.clone()).unwrap();
        assert_eq!(serde_json::to_value(&parsed).unwrap(), policy);
        let odd = json!({ "rules": [{ "domain": "Example.COM.", "action": "allow" }] });
        let parsed: NetworkPolicy = serde_json::from_value(odd).unwrap();
        assert_eq!(serde_json::to_value(&parsed).unwrap()["rules"][0]["domain"], "example.com");
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for policy in [
            json!({}),
            json!({ "rules": null }),
            json!({ "rules": [{}] }),
            json!({ "rules": [{ "domain": "example.com" }] }),
            json!({ "rules": [{ "action": "allow" }] }),
            json!({ "rules": [{ "domain": "example.com", "action": "maybe" }] }),
            json!({ "rules": [{ "domain": "example.com", "action": "allow", "include": "defaults" }] }),
            json!({ "rules": [{ "include": "everything" }] }),
            json!({ "rules": [{ "domain": "example.com", "action": "allow", "port": 1 }] }),
            json!({ "rules": [], "egress": {} }),
        ] {
            assert!(serde_json::from_value::<NetworkPolicy>(policy.clone()).is_err(), "{policy}");
        }
        let long = format!("{}.com", "a".repeat(64));
        for domain in [
            "",
            ".",
            "*.",
            "**",
            "a..b",
            "*.*.com",
            "a.*.com",
            "exa mple.com",
            "http://a",
            "a/b",
            "ü.com",
            &long,
        ] {
            assert!(domain.parse::<Domain>().is_err(), "{domain:?}");
        }
        for domain in ["a", "*.a", "xn--bcher-kva.example", "_srv.example.com", "1.2.3.4"] {
            assert_eq!(domain.parse::<Domain>().unwrap().as_str(), domain);
        }
        assert!(DEFAULTS.iter().all(|domain| domain.parse::<Domain>().is_ok()));
    }
}
