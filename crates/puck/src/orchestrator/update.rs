//! `PUT /v1/sprites/{name}`: changes what the body has, and nothing else.

use super::{Orchestrator, Refusal, create::read, refusal, view};
use api::sprite::{
    Durability, LABEL_BYTES_MAX, LABELS_MAX, ParseDurabilityError, PrivateAccess, UpdateSprite,
    UpdateUrlSettings, UrlAuth, UrlSettings,
};
use axum::{
    body::Body,
    extract::State,
    http::Uri,
    response::{IntoResponse, Json, Response},
};
use jiff::Timestamp;
use std::sync::Arc;

/// The longest time without activity that a sprite can be told to stay awake: 30 days.
const IDLE_TIMEOUT_SECONDS_MAX: u64 = 30 * 24 * 3600;

pub(super) async fn update(
    State(orchestrator): State<Arc<Orchestrator>>,
    uri: Uri,
    body: Body,
) -> Result<Response, Refusal> {
    let record = orchestrator.find(&uri)?;
    let asked: UpdateSprite = refusal::parse(&read(body).await?)?;
    let mut errors = Vec::new();
    let url_change = asked.url_settings.as_ref().map(|asked| url_settings(asked, &mut errors));
    let labels = if asked.clear_labels == Some(true) { Some(Vec::new()) } else { asked.labels };
    check_labels(labels.as_deref().unwrap_or_default(), &mut errors);
    if let Some(seconds) = asked.idle_timeout_seconds {
        check_idle_timeout(seconds, &mut errors);
    }
    let durability = durability(asked.durability.as_deref(), &mut errors);
    if !errors.is_empty() {
        return Err(Refusal::invalid(errors));
    }
    let idle_timeout_seconds = asked.idle_timeout_seconds;
    let change = move |record: &mut crate::account::SpriteRecord| {
        if let Some(change) = url_change {
            change(&mut record.url_settings);
        }
        if let Some(labels) = labels {
            record.labels = labels;
        }
        if let Some(seconds) = idle_timeout_seconds {
            record.idle_timeout_seconds = seconds;
        }
        if let Some(durability) = durability {
            record.durability = durability;
        }
        record.updated_at = Timestamp::now();
    };
    let record = orchestrator.change(&record, change).await?;
    Ok(Json(view::sprite(&orchestrator, &record)).into_response())
}

/// What to change of URL settings: what was asked for and nothing else, since others may have changed the rest meanwhile. Tells what
/// is wrong.
pub(super) fn url_settings(
    asked: &UpdateUrlSettings,
    errors: &mut Vec<String>,
) -> impl FnOnce(&mut UrlSettings) + Send + 'static {
    let auth = match asked.auth.as_deref() {
        None => None,
        Some("sprite") => Some(UrlAuth::Sprite),
        Some("public") => Some(UrlAuth::Public),
        Some(_) => {
            errors.push("invalid auth type, must be one of: sprite, public".to_owned());
            None
        }
    };
    let private_access = match asked.private_access.as_deref() {
        None => None,
        Some("admins") => Some(PrivateAccess::Admins),
        Some("org_users") => Some(PrivateAccess::OrgUsers),
        Some(_) => {
            errors.push("invalid private access, must be one of: admins, org_users".to_owned());
            None
        }
    };
    move |settings| {
        settings.auth = auth.unwrap_or(settings.auth);
        settings.private_access = private_access.or(settings.private_access);
    }
}

/// The durability that a text names, if it names one.
pub(super) fn durability(text: Option<&str>, errors: &mut Vec<String>) -> Option<Durability> {
    match text?.parse() {
        Ok(durability) => Some(durability),
        Err(error) => {
            errors.push(ParseDurabilityError::to_string(&error));
            None
        }
    }
}

/// Tells what is wrong of labels.
pub(super) fn check_labels(labels: &[String], errors: &mut Vec<String>) {
    if labels.len() > LABELS_MAX {
        errors.push(format!("too many labels, at most {LABELS_MAX}"));
    }
    let wrong = |label: &String| {
        label.is_empty() || label.len() > LABEL_BYTES_MAX || label.chars().any(char::is_control)
    };
    if labels.iter().any(wrong) {
        errors.push(format!(
            "invalid label, must be 1 to {LABEL_BYTES_MAX} bytes without control characters"
        ));
    }
}

/// Tells what is wrong of an idle time.
pub(super) fn check_idle_timeout(seconds: u64, errors: &mut Vec<String>) {
    if !(1..=IDLE_TIMEOUT_SECONDS_MAX).contains(&seconds) {
        errors
            .push(format!("invalid idle timeout, must be 1 to {IDLE_TIMEOUT_SECONDS_MAX} seconds"));
    }
}
