//! The checkpoint routes over an implementation that keeps its checkpoints in memory.

use super::Bench;
use crate::api::checkpoints::{CheckpointError, Checkpoints};
use ::api::{
    checkpoint::{CURRENT, Checkpoint},
    volume::{Change, ChangeKind, VolumeStatus},
};
use async_trait::async_trait;
use http::{Method, StatusCode};
use jiff::Timestamp;
use serde_json::json;
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;

#[derive(Default)]
struct InMemory(Mutex<Vec<Checkpoint>>);

fn checkpoint(id: &str, comment: &str) -> Checkpoint {
    Checkpoint {
        id: id.to_owned(),
        create_time: "2026-09-15T10:00:00Z".parse().unwrap(),
        comment: comment.to_owned(),
        is_auto: id.starts_with("auto"),
        source_id: None,
        history: if id == "v2" { vec!["v1".to_owned()] } else { Vec::new() },
        health: String::new(),
    }
}

#[async_trait]
impl Checkpoints for InMemory {
    async fn create(&self, comment: &str) -> Result<Checkpoint, CheckpointError> {
        if comment == "fail" {
            return Err(CheckpointError::Failed("disk is full".into()));
        }
        let mut all = self.0.lock().unwrap();
        let made = checkpoint(&format!("v{}", all.len() + 1), comment);
        all.push(made.clone());
        Ok(made)
    }

    async fn list(&self) -> Result<Vec<Checkpoint>, CheckpointError> {
        let kept = self.0.lock().unwrap().clone();
        let current = [checkpoint(CURRENT, ""), checkpoint("auto-1", "")];
        Ok(current.into_iter().chain(kept.into_iter().rev()).collect())
    }

    async fn delete(&self, id: &str) -> Result<(), CheckpointError> {
        let mut all = self.0.lock().unwrap();
        let index = all
            .iter()
            .position(|checkpoint| checkpoint.id == id)
            .ok_or(CheckpointError::NotFound)?;
        if index + 1 == all.len() {
            return Err(CheckpointError::Conflict("the sprite grew from it".to_owned()));
        }
        all.remove(index);
        Ok(())
    }

    async fn restore(&self, id: &str) -> Result<(), CheckpointError> {
        if id == "v2" { Err(CheckpointError::Failed("the bucket is away".into())) } else { Ok(()) }
    }

    async fn rewind(&self, at: Timestamp) -> Result<(), CheckpointError> {
        if at.as_second() < 1_000 {
            return Err(CheckpointError::Conflict("nothing is that old".to_owned()));
        }
        Ok(())
    }

    async fn browse(&self, _: &str) -> Result<(), CheckpointError> {
        Err(CheckpointError::NotFound)
    }

    async fn diff(
        &self,
        from: &str,
        to: &str,
        changes: mpsc::Sender<Change>,
    ) -> Result<(), CheckpointError> {
        for path in [from, to] {
            let change = Change { path: format!("/{path}"), kind: ChangeKind::Added };
            changes.send(change).await.unwrap();
        }
        if from == "v2" {
            Err(CheckpointError::Failed("the bucket is away".into()))
        } else {
            Ok(())
        }
    }

    async fn status(&self) -> Result<VolumeStatus, CheckpointError> {
        Err(CheckpointError::Failed("no disk".into()))
    }
}

#[tokio::test]
async fn checkpoints_are_made_listed_restored_and_deleted() {
    let bench = Bench::with_checkpoints(Arc::new(InMemory::default())).await;
    let created = bench.call(Method::POST, "checkpoint", &[], r#"{"comment":"before"}"#).await;
    assert_eq!(
        (created.status, created.header("content-type")),
        (StatusCode::OK, "application/x-ndjson")
    );
    assert_eq!(created.header("cache-control"), "no-cache");
    let lines = created.lines();
    assert_eq!(
        (&lines[0]["type"], &lines[0]["data"]),
        (&json!("info"), &json!("Creating checkpoint..."))
    );
    assert!(lines.iter().any(|line| line["data"] == "  ID: v1"));
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["type"], &last["data"]),
        (&json!("complete"), &json!("Checkpoint v1 created successfully"))
    );
    assert_eq!(lines.iter().filter(|line| line["type"] != "info").count(), 1);
    assert!(lines.iter().all(|line| line["time"].is_string()));
    for body in ["", "{}", " \n"] {
        assert_eq!(bench.call(Method::POST, "checkpoint", &[], body).await.status, StatusCode::OK);
    }

    let ids = |answer: super::Answer| {
        let list = answer.json();
        list.as_array()
            .unwrap()
            .iter()
            .map(|one| one["id"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(bench.get("checkpoints").await), ["Current", "v4", "v3", "v2", "v1"]);
    assert_eq!(ids(bench.get("checkpoints?includeAuto=true").await).len(), 6);
    assert_eq!(ids(bench.get("checkpoints?history=v1").await), ["v2"]);
    let one = bench.get("checkpoints/v1").await.json();
    assert_eq!(
        (&one["comment"], &one["create_time"]),
        (&json!("before"), &json!("2026-09-15T10:00:00Z"))
    );

    let restored = bench.call(Method::POST, "checkpoints/v1/restore", &[], "").await.lines();
    assert_eq!(restored[0]["data"], "Restoring from checkpoint v1...");
    assert_eq!(restored.last().unwrap()["data"], "Restore from v1 complete");
    let failed = bench.call(Method::POST, "checkpoints/v2/restore", &[], "").await.lines();
    let last = failed.last().unwrap();
    assert_eq!(last["type"], "error");
    assert!(last["error"].as_str().unwrap().ends_with("the bucket is away"));

    let delete = async |id: &str| {
        bench.call(Method::DELETE, &format!("checkpoints/{id}"), &[], "").await.status
    };
    assert_eq!(delete("v1").await, StatusCode::NO_CONTENT);
    assert_eq!(delete("v1").await, StatusCode::NOT_FOUND);
    assert_eq!(delete("v4").await, StatusCode::CONFLICT);
    assert_eq!(delete("Current").await, StatusCode::CONFLICT);
}

#[tokio::test]
async fn bad_calls_are_refused() {
    let bench = Bench::with_checkpoints(Arc::new(InMemory::default())).await;
    let long = format!(r#"{{"comment":"{}"}}"#, "x".repeat(5000));
    for (body, status) in [
        ("{", 400),
        (r#"{"comment":3}"#, 400),
        ("3", 400),
        (&long, 400),
        (&"x".repeat(1_000_000), 413),
    ] {
        assert_eq!(
            bench.call(Method::POST, "checkpoint", &[], body.to_owned()).await.status,
            status
        );
    }
    for id in ["v9", "..", "%2e%2e%2fv1", "%00", &"v".repeat(50_000)] {
        let answer = bench.call(Method::POST, &format!("checkpoints/{id}/restore"), &[], "").await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
        assert_eq!(bench.get(&format!("checkpoints/{id}")).await.status, StatusCode::NOT_FOUND);
    }
    let failed = bench.call(Method::POST, "checkpoint", &[], r#"{"comment":"fail"}"#).await.lines();
    assert_eq!(failed.last().unwrap()["type"], "error");
    assert_eq!(
        bench.call(Method::POST, "checkpoints", &[], "{}").await.status,
        StatusCode::METHOD_NOT_ALLOWED
    );
}

#[tokio::test]
async fn two_checkpoints_are_compared() {
    let bench = Bench::with_checkpoints(Arc::new(InMemory::default())).await;
    for _ in 0..2 {
        bench.call(Method::POST, "checkpoint", &[], "").await;
    }
    let told = bench.get("checkpoints/v1/diff/v2").await;
    assert_eq!(
        (told.status, told.header("content-type")),
        (StatusCode::OK, "application/x-ndjson")
    );
    let change = |path| json!({ "path": path, "kind": "added" });
    assert_eq!(told.lines(), [change("/v1"), change("/v2")]);
    // What fails in the middle is told at the end.
    let broken = bench.get("checkpoints/v2/diff/v1").await.lines();
    assert_eq!(broken.len(), 3);
    assert!(broken[2]["error"].as_str().unwrap().contains("the bucket is away"));
    assert_eq!(bench.get("checkpoints/v1/diff/v9").await.status, StatusCode::NOT_FOUND);
    assert_eq!(bench.get("checkpoints/v1/diff/Current").await.status, StatusCode::CONFLICT);
}

#[tokio::test]
async fn a_rewind_needs_an_instant() {
    let bench = Bench::with_checkpoints(Arc::new(InMemory::default())).await;
    let last = async |body: &'static str| {
        bench.call(Method::POST, "rewind", &[], body).await.lines().pop()
    };
    assert_eq!(last(r#"{"at":"2026-01-31T10:00:00Z"}"#).await.unwrap()["type"], "complete");
    let failed = last(r#"{"at":"1970-01-01T00:00:01Z"}"#).await.unwrap();
    assert_eq!(failed["type"], "error");
    assert!(failed["error"].as_str().unwrap().contains("nothing is that old"));
    for bad in ["", "{}", r#"{"at":"yesterday"}"#] {
        let refused = bench.call(Method::POST, "rewind", &[], bad).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{bad}");
    }
}
