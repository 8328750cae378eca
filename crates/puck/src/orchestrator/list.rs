//! `GET /v1/sprites`: pages of sprites by name, or a watch.

use super::{Orchestrator, Refusal, view, watch};
use crate::account::{Contents, SpriteRecord, Sprites};
use api::{
    name::SpriteName,
    query::Query,
    sprite::{LIST_PAGE_MAX, SpriteList},
};
use axum::{
    extract::{RawQuery, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Json, Response},
};
use std::{ops::Bound, sync::Arc};

/// How many sprites a page has when the client does not say.
const PAGE_DEFAULT: usize = 50;

pub(super) async fn list(
    State(orchestrator): State<Arc<Orchestrator>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let query = Query::parse(query.as_deref().unwrap_or_default())
        .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, error.to_string()))?;
    let prefix = query.first("prefix").unwrap_or_default();
    let accepts =
        headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if accepts.contains(watch::CONTENT_TYPE) {
        return Ok(watch::watch(orchestrator, prefix.to_owned()));
    }
    let after =
        match query.first("continuation_token").unwrap_or_default() {
            "" => None,
            token => Some(token.parse::<SpriteName>().map_err(|_| {
                Refusal::new(StatusCode::BAD_REQUEST, "invalid continuation_token")
            })?),
        };
    let contents = orchestrator.account.contents();
    if query.flag("destroyed") {
        return Ok(Json(destroyed(&orchestrator, &contents, prefix)).into_response());
    }
    let page =
        page(&contents.sprites, prefix, after.as_ref(), page_size(query.first("max_results")));
    let counts = view::counts(&orchestrator);
    Ok(Json(SpriteList {
        sprites: page.records.iter().map(|record| view::sprite(&orchestrator, record)).collect(),
        has_more: page.next.is_some(),
        next_continuation_token: page.next,
        org: counts.clone(),
        counts,
    })
    .into_response())
}

/// Those that can be had back, the last one destroyed first. There is no telling them apart by name, so they are one page.
fn destroyed(orchestrator: &Orchestrator, contents: &Contents, prefix: &str) -> SpriteList {
    let mut records: Vec<_> = contents
        .destroyed
        .values()
        .filter(|record| record.name.as_str().starts_with(prefix))
        .collect();
    records.sort_by_key(|record| std::cmp::Reverse(record.destroyed_at));
    let counts = view::counts(orchestrator);
    SpriteList {
        sprites: records.into_iter().map(|record| view::sprite(orchestrator, record)).collect(),
        has_more: false,
        next_continuation_token: None,
        org: counts.clone(),
        counts,
    }
}

struct Page {
    records: Vec<Arc<SpriteRecord>>,
    next: Option<String>,
}

/// Clients send what they like; none of it is an error.
fn page_size(text: Option<&str>) -> usize {
    text.and_then(|text| text.parse().ok()).unwrap_or(PAGE_DEFAULT).clamp(1, LIST_PAGE_MAX)
}

/// The page that follows a name. The token for the next one is the page's last name, so what comes and goes between two pages
/// moves nothing else.
fn page(sprites: &Sprites, prefix: &str, after: Option<&SpriteName>, size: usize) -> Page {
    let start = after.map_or(Bound::Unbounded, Bound::Excluded);
    let mut matching = sprites
        .range((start, Bound::Unbounded))
        .map(|(_, record)| record)
        .filter(|record| record.name.as_str().starts_with(prefix));
    let records: Vec<_> = matching.by_ref().take(size).cloned().collect();
    let next = matching.next().and(records.last()).map(|record| record.name.to_string());
    Page { records, next }
}

#[cfg(test)]
mod tests {
    use super::{page, page_size};
    use crate::account::{SpriteRecord, Sprites};
    use api::sprite::SpriteId;
    use jiff::Timestamp;
    use std::sync::Arc;
    use volume::VolumeId;

    fn sprites(names: &[&str]) -> Sprites {
        let record = |name: &str| SpriteRecord {
            id: SpriteId::now(),
            name: name.parse().expect("a name"),
            volume: VolumeId::now(),
            ancestors: Vec::new(),
            image: String::new(),
            url_settings: Default::default(),
            labels: Vec::new(),
            environment: Default::default(),
            idle_timeout_seconds: 30,
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: Timestamp::UNIX_EPOCH,
            last_running_at: None,
            last_warming_at: None,
            durability: Default::default(),
            policies: Default::default(),
            destroyed_at: None,
        };
        names
            .iter()
            .map(|name| record(name))
            .map(|record| (record.name.clone(), Arc::new(record)))
            .collect()
    }

    fn walk(sprites: &Sprites, prefix: &str, size: usize) -> Vec<Vec<String>> {
        let mut pages = Vec::new();
        let mut after = None;
        loop {
            let page = page(sprites, prefix, after.as_ref(), size);
            pages.push(page.records.iter().map(|record| record.name.to_string()).collect());
            match page.next {
                Some(next) => after = Some(next.parse().expect("a token is a name")),
                None => return pages,
            }
        }
    }

    #[test]
    fn pages_cover_everything_once() {
        let all = sprites(&["a", "a-1", "a-2", "b", "b-1"]);
        assert_eq!(walk(&all, "", 2), [vec!["a", "a-1"], vec!["a-2", "b"], vec!["b-1"]]);
        assert_eq!(walk(&all, "", 5), [["a", "a-1", "a-2", "b", "b-1"]]);
        assert_eq!(walk(&all, "a", 2), [vec!["a", "a-1"], vec!["a-2"]]);
        assert_eq!(walk(&all, "c", 2), [Vec::<String>::new()]);
        assert_eq!(walk(&sprites(&[]), "", 2), [Vec::<String>::new()]);
    }

    #[test]
    fn sizes_are_clamped() {
        for (text, size) in [
            (None, 50),
            (Some("7"), 7),
            (Some("0"), 1),
            (Some("1000"), 100),
            (Some("x"), 50),
            (Some("-1"), 50),
        ] {
            assert_eq!(page_size(text), size, "{text:?}");
        }
    }
}
