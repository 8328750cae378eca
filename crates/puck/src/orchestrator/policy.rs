//! `/v1/sprites/{name}/policy/…`: what a sprite may reach and use. Answered here, so that no sprite has to wake for it, and a change
//! is in the account's log before it is answered; a sprite that is awake has put it into force by then.

use super::{Orchestrator, Refusal, create::read, refusal};
use crate::account::SpriteRecord;
use api::policy::{
    Action, DEFAULTS, DEVICES, MEMORY_LIMIT_MB_MIN, NetworkPolicy, NetworkRule, Policies,
    PrivilegesPolicy, Profile, RULES_MAX, ResourcesPolicy,
};
use axum::{
    body::Body,
    extract::State,
    http::{StatusCode, Uri},
    response::Json,
};
use guest::protocol::{DomainRule, Privileges};
use jiff::Timestamp;
use serde::{Serialize, de::DeserializeOwned};
use std::{collections::BTreeMap, sync::Arc};

/// One kind of policy, by its place among a sprite's.
pub(super) trait Kind:
    Clone + Default + Serialize + DeserializeOwned + Send + 'static
{
    fn of(policies: &mut Policies) -> &mut Self;
}

impl Kind for NetworkPolicy {
    fn of(policies: &mut Policies) -> &mut Self {
        &mut policies.network
    }
}

impl Kind for PrivilegesPolicy {
    fn of(policies: &mut Policies) -> &mut Self {
        &mut policies.privileges
    }
}

impl Kind for ResourcesPolicy {
    fn of(policies: &mut Policies) -> &mut Self {
        &mut policies.resources
    }
}

pub(super) async fn show<K: Kind>(
    State(orchestrator): State<Arc<Orchestrator>>,
    uri: Uri,
) -> Result<Json<K>, Refusal> {
    let mut policies = orchestrator.find(&uri)?.policies.clone();
    Ok(Json(std::mem::take(K::of(&mut policies))))
}

pub(super) async fn set<K: Kind>(
    State(orchestrator): State<Arc<Orchestrator>>,
    uri: Uri,
    body: Body,
) -> Result<StatusCode, Refusal> {
    let record = orchestrator.find(&uri)?;
    let policy: K = refusal::parse(&read(body).await?)?;
    let mut policies = record.policies.clone();
    *K::of(&mut policies) = policy.clone();
    check(&orchestrator, &policies)?;
    replace(&orchestrator, &record, policy).await
}

pub(super) async fn reset<K: Kind>(
    State(orchestrator): State<Arc<Orchestrator>>,
    uri: Uri,
) -> Result<StatusCode, Refusal> {
    let record = orchestrator.find(&uri)?;
    replace(&orchestrator, &record, K::default()).await
}

async fn replace<K: Kind>(
    orchestrator: &Arc<Orchestrator>,
    record: &SpriteRecord,
    policy: K,
) -> Result<StatusCode, Refusal> {
    let change = move |record: &mut SpriteRecord| {
        *K::of(&mut record.policies) = policy;
        record.updated_at = Timestamp::now();
    };
    orchestrator.change(record, change).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Refuses policies that are too large, or cannot be enforced here.
pub(super) fn check(orchestrator: &Orchestrator, policies: &Policies) -> Result<(), Refusal> {
    if policies.network.rules.len() > RULES_MAX {
        return Err(Refusal::invalid(vec![format!("too many rules, at most {RULES_MAX}")]));
    }
    let most = orchestrator.worker.limits().memory_bytes >> 20;
    if let Some(memory) = policies.resources.memory
        && !(MEMORY_LIMIT_MB_MIN..=most).contains(&memory.limit_mb)
    {
        let message = format!("invalid limit_mb, must be {MEMORY_LIMIT_MB_MIN} to {most}");
        return Err(Refusal::invalid(vec![message]));
    }
    if policies.privileges.profile == Profile::Privileged {
        let message = "invalid profile: the sprites of this server share its kernel, so none can be privileged";
        return Err(Refusal::invalid(vec![message.to_owned()]));
    }
    if policies.privileges.devices.len() > DEVICES.len() {
        let message = format!("too many devices, at most {}", DEVICES.len());
        return Err(Refusal::invalid(vec![message]));
    }
    let unknown = |device: &&String| !DEVICES.contains(&device.as_str());
    if let Some(device) = policies.privileges.devices.iter().find(unknown) {
        let message = format!("invalid device {device:?}, must be one of: {}", DEVICES.join(", "));
        return Err(Refusal::invalid(vec![message]));
    }
    Ok(())
}

/// The rules as an agent takes them: every pattern written out.
pub(super) fn domain_rules(policy: &NetworkPolicy) -> Vec<DomainRule> {
    let mut rules = Vec::new();
    for rule in &policy.rules {
        match rule {
            NetworkRule::Domain { domain, action } => rules
                .push(DomainRule { domain: domain.to_string(), allow: *action == Action::Allow }),
            NetworkRule::Defaults => {
                let allowed =
                    |domain: &&str| DomainRule { domain: (*domain).to_owned(), allow: true };
                rules.extend(DEFAULTS.iter().map(allowed));
            }
        }
    }
    rules
}

/// How much memory the sprite's programs get; `None` for all that the server gives one.
pub(super) fn memory_bytes(policy: &ResourcesPolicy) -> Option<u64> {
    policy.memory.filter(|memory| !memory.autoscale).map(|memory| memory.limit_mb << 20)
}

/// The policy as an agent takes it.
pub(super) fn limits(policy: &PrivilegesPolicy) -> Privileges {
    let minimal = policy.profile == Profile::Minimal;
    Privileges { no_new_privileges: minimal || policy.no_new_privileges, no_capabilities: minimal }
}

/// What programs in the sprite may read, as the API has it.
pub(super) fn files(policies: &Policies) -> BTreeMap<String, String> {
    let text = |value: serde_json::Result<String>| value.expect("policies are always JSON") + "\n";
    BTreeMap::from([
        ("network.json".to_owned(), text(serde_json::to_string(&policies.network))),
        ("privileges.json".to_owned(), text(serde_json::to_string(&policies.privileges))),
        ("resources.json".to_owned(), text(serde_json::to_string(&policies.resources))),
    ])
}
