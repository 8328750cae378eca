//! The account's tables: schema and every query.

use super::{AccountError, SpriteRecord, Sprites, database, tokens::Hash};
use api::{
    name::{OrgName, SpriteName},
    sprite::UrlSettings,
};
use jiff::Timestamp;
use rusqlite::{
    Connection, Row, Transaction, params,
    types::{FromSql, FromSqlError, FromSqlResult, ValueRef},
};
use serde::de::DeserializeOwned;
use std::{collections::BTreeMap, str::FromStr, sync::Arc};

/// The version of the schema below, in `user_version`.
const VERSION: i64 = 1;

/// Times are microseconds since 1970; lists and maps are JSON, since nothing is ever searched in them.
const SCHEMA: &str = "
create table organization (
    name text not null primary key,
    id   text not null
) strict;

create table token (
    id         text not null primary key,
    hash       blob not null,
    created_at integer not null
) strict;

create table sprite (
    name                 text not null primary key,
    id                   text not null unique,
    volume               text not null unique,
    ancestors            text not null,
    image                text not null,
    url_settings         text not null,
    labels               text not null,
    environment          text not null,
    idle_timeout_seconds integer not null,
    created_at           integer not null,
    updated_at           integer not null,
    last_running_at      integer,
    last_warming_at      integer
) strict;
";

/// Makes the tables where there are none, and returns the organization's short id.
pub(super) fn prepare(db: &mut Connection, org: &OrgName) -> Result<String, AccountError> {
    let found: i64 = db
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(|error| database("read", error))?;
    if found > VERSION {
        return Err(AccountError::Newer { found, known: VERSION });
    }
    let mut organization = || -> rusqlite::Result<(String, String)> {
        let transaction = db.transaction()?;
        if found == 0 {
            transaction.execute_batch(SCHEMA)?;
            transaction.pragma_update(None, "user_version", VERSION)?;
            let id = super::tokens::random_org_id();
            transaction.execute(
                "insert into organization (name, id) values (?, ?)",
                params![org.as_str(), id],
            )?;
        }
        let known = transaction.query_row("select name, id from organization", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
        transaction.commit()?;
        Ok(known)
    };
    let (name, id) = organization().map_err(|error| database("write", error))?;
    if name == org.as_str() { Ok(id) } else { Err(AccountError::WrongOrganization(name)) }
}

/// Every token's hash, by id.
pub(super) fn tokens(db: &Connection) -> Result<BTreeMap<String, Hash>, AccountError> {
    let read = || -> rusqlite::Result<_> {
        let mut statement = db.prepare("select id, hash from token")?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, Hash(row.get(1)?))))?;
        rows.collect()
    };
    read().map_err(|error| database("read", error))
}

/// Adds a token.
pub(super) fn add_token(db: &Connection, id: &str, hash: &Hash) -> Result<(), AccountError> {
    let now = Timestamp::now().as_microsecond();
    db.execute(
        "insert into token (id, hash, created_at) values (?, ?, ?)",
        params![id, hash.0, now],
    )
    .map(|_| ())
    .map_err(|error| database("write", error))
}

/// Every sprite.
pub(super) fn sprites(db: &Connection) -> Result<Sprites, AccountError> {
    let read = || -> rusqlite::Result<_> {
        let mut statement = db.prepare("select * from sprite")?;
        let rows = statement.query_map([], |row| {
            record(row).map(|record| (record.name.clone(), Arc::new(record)))
        })?;
        rows.collect()
    };
    read().map_err(|error| database("read", error))
}

/// Makes the row of `name` hold `record`, or makes it go away.
pub(super) fn set(
    transaction: &Transaction<'_>,
    name: &SpriteName,
    record: Option<&SpriteRecord>,
) -> rusqlite::Result<()> {
    transaction.prepare_cached("delete from sprite where name = ?")?.execute([name.as_str()])?;
    let Some(record) = record else { return Ok(()) };
    let mut insert = transaction.prepare_cached(
        "insert into sprite (name, id, volume, ancestors, image, url_settings, labels, environment, idle_timeout_seconds,
             created_at, updated_at, last_running_at, last_warming_at)
         values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?;
    insert.execute(params![
        record.name.as_str(),
        record.id.to_string(),
        record.volume.to_string(),
        json(&record.ancestors),
        record.image,
        json(&record.url_settings),
        json(&record.labels),
        json(&record.environment),
        i64::try_from(record.idle_timeout_seconds).unwrap_or(i64::MAX),
        record.created_at.as_microsecond(),
        record.updated_at.as_microsecond(),
        record.last_running_at.map(Timestamp::as_microsecond),
        record.last_warming_at.map(Timestamp::as_microsecond),
    ])?;
    Ok(())
}

fn record(row: &Row<'_>) -> rusqlite::Result<SpriteRecord> {
    Ok(SpriteRecord {
        name: row.get::<_, Text<SpriteName>>("name")?.0,
        id: row.get::<_, Text<_>>("id")?.0,
        volume: row.get::<_, Text<_>>("volume")?.0,
        ancestors: row.get::<_, Json<_>>("ancestors")?.0,
        image: row.get("image")?,
        url_settings: row.get::<_, Json<UrlSettings>>("url_settings")?.0,
        labels: row.get::<_, Json<_>>("labels")?.0,
        environment: row.get::<_, Json<_>>("environment")?.0,
        idle_timeout_seconds: row.get::<_, i64>("idle_timeout_seconds")?.unsigned_abs(),
        created_at: row.get::<_, Time>("created_at")?.0,
        updated_at: row.get::<_, Time>("updated_at")?.0,
        last_running_at: row.get::<_, Option<Time>>("last_running_at")?.map(|time| time.0),
        last_warming_at: row.get::<_, Option<Time>>("last_warming_at")?.map(|time| time.0),
    })
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("lists and maps of text are always JSON")
}

/// A column with the text form of a type that is parsed.
struct Text<T>(T);

impl<T> FromSql for Text<T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_str()?.parse().map(Self).map_err(|error| FromSqlError::Other(Box::new(error)))
    }
}

/// A column with JSON.
struct Json<T>(T);

impl<T: DeserializeOwned> FromSql for Json<T> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        serde_json::from_str(value.as_str()?)
            .map(Self)
            .map_err(|error| FromSqlError::Other(Box::new(error)))
    }
}

/// A column with microseconds since 1970.
struct Time(Timestamp);

impl FromSql for Time {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let time = Timestamp::from_microsecond(value.as_i64()?);
        time.map(Self).map_err(|error| FromSqlError::Other(Box::new(error)))
    }
}
