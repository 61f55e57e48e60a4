//! The file: three tables of rows that say by a digest whether they are as they were written.
//!
//! `SQLite` has no checksums of its own. A flipped bit in a row would be an answer, so it is made an error: every row is read with the
//! digest of its table, its key and its body.

use std::{fs, path::Path, time::Duration};

use kiln_core::Digest;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, params};
use serde::{Serialize, de::DeserializeOwned};

use crate::Indexed;

/// The format of the file. A kiln with another one has another file.
pub(crate) const FORMAT: i32 = 1;

/// How long one waits for another process; then the objects are quicker.
const PATIENCE: Duration = Duration::from_millis(100);

const TABLES: &str = "
    create table if not exists image (image text primary key, body blob not null, sum blob not null) without rowid;
    create table if not exists build (image text, version text, body blob not null, sum blob not null,
        primary key (image, version)) without rowid;
    create table if not exists moves (image text primary key, body blob not null, sum blob not null) without rowid;
";

/// What a line says of an image.
#[derive(Debug, Clone, Copy)]
pub(crate) enum About {
    Summary,
    Moves,
}

impl About {
    const fn table(self) -> &'static str {
        match self {
            Self::Summary => "image",
            Self::Moves => "moves",
        }
    }
}

/// Why the database gave no answer.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// A row is not what was written.
    Altered,
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl Trouble {
    /// Whether another process is at it just now.
    fn passes(&self) -> bool {
        let Self::Sqlite(error) = self else { return false };
        matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
    }

    /// Whether the file is to be made anew. One that is locked, read-only or on a full disk is as good as it was.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Self::Altered => true,
            Self::Sqlite(_) if self.passes() => false,
            Self::Sqlite(error) => !matches!(
                error.sqlite_error_code(),
                Some(
                    ErrorCode::ReadOnly
                        | ErrorCode::DiskFull
                        | ErrorCode::CannotOpen
                        | ErrorCode::PermissionDenied
                        | ErrorCode::SystemIoFailure
                )
            ),
        }
    }
}

pub(crate) struct Database {
    connection: Connection,
    /// It is in memory: it ends with the process.
    passing: bool,
}

impl Database {
    /// Opens the file, or makes it. A file that is something else is replaced; where none can be made, it is in memory.
    pub(crate) fn open(path: Option<&Path>) -> Result<Self, Trouble> {
        let Some(path) = path else { return Self::in_memory() };
        // What cannot be made says so when it is opened.
        let _ = path.parent().map(fs::create_dir_all);
        let mut opened = Self::at(path);
        if opened.as_ref().is_err_and(Trouble::is_damage) {
            remove(path);
            opened = Self::at(path);
        }
        match opened {
            Err(trouble) if !trouble.passes() => Self::in_memory(),
            opened => opened,
        }
    }

    fn in_memory() -> Result<Self, Trouble> {
        Self::prepare(Connection::open_in_memory()?, true)
    }

    fn at(path: &Path) -> Result<Self, Trouble> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Self::prepare(Connection::open_with_flags(path, flags)?, false)
    }

    fn prepare(connection: Connection, passing: bool) -> Result<Self, Trouble> {
        connection.busy_timeout(PATIENCE)?;
        // What power loss takes is made anew.
        connection.pragma_update(None, "synchronous", "off")?;
        connection.pragma_update(None, "trusted_schema", false)?;
        connection.pragma_update(None, "cell_size_check", true)?;
        let format: i32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if format != FORMAT {
            if format != 0 {
                return Err(Trouble::Altered);
            }
            connection.execute_batch(TABLES)?;
            connection.pragma_update(None, "user_version", FORMAT)?;
        }
        Ok(Self { connection, passing })
    }

    /// What is in it; `None` when it ends with the process.
    pub(crate) fn indexed(&self) -> Result<Option<Indexed>, Trouble> {
        if self.passing {
            return Ok(None);
        }
        let count = |table: &str| {
            let sql = format!("select count(*) from {table}");
            let count: i64 = self.connection.query_row(&sql, [], |row| row.get(0))?;
            Ok::<_, Trouble>(count.unsigned_abs())
        };
        Ok(Some(Indexed { images: count("image")?, builds: count("build")?, histories: count("moves")? }))
    }

    /// What is known of an image as a whole.
    pub(crate) fn line<T: DeserializeOwned>(&self, about: About, image: &str) -> Result<Option<T>, Trouble> {
        let table = about.table();
        let mut statement = self.connection.prepare(&format!("select body, sum from {table} where image = ?1"))?;
        let row = statement.query_row([image], pair).optional()?;
        row.map(|(body, sum)| read(table, image, "", &body, &sum)).transpose()
    }

    pub(crate) fn put_line(&mut self, about: About, image: &str, value: &impl Serialize) -> Result<(), Trouble> {
        let table = about.table();
        let (body, sum) = written(table, image, "", value)?;
        let sql = format!("replace into {table} values (?1, ?2, ?3)");
        self.connection.execute(&sql, params![image, body, sum])?;
        Ok(())
    }

    pub(crate) fn build<T: DeserializeOwned>(&self, image: &str, version: &str) -> Result<Option<T>, Trouble> {
        let mut statement = self.connection.prepare("select body, sum from build where image = ?1 and version = ?2")?;
        let row = statement.query_row([image, version], pair).optional()?;
        row.map(|(body, sum)| read("build", image, version, &body, &sum)).transpose()
    }

    pub(crate) fn put_builds<'a, T: Serialize + 'a>(
        &mut self,
        image: &str,
        builds: impl Iterator<Item = (&'a str, &'a T)>,
    ) -> Result<(), Trouble> {
        let all = self.connection.transaction()?;
        for (version, build) in builds {
            let (body, sum) = written("build", image, version, build)?;
            let mut statement = all.prepare("replace into build values (?1, ?2, ?3, ?4)")?;
            statement.execute(params![image, version, body, sum])?;
        }
        Ok(all.commit()?)
    }
}

/// Removes the file and what `SQLite` keeps beside it.
pub(crate) fn remove(path: &Path) {
    for end in ["", "-journal", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(end);
        // One that stays is opened, and fails, again.
        let _ = fs::remove_file(name);
    }
}

/// Body and sum.
fn pair(row: &rusqlite::Row<'_>) -> rusqlite::Result<(Vec<u8>, Vec<u8>)> {
    Ok((row.get(0)?, row.get(1)?))
}

fn sum(table: &str, image: &str, key: &str, body: &[u8]) -> Vec<u8> {
    let bytes = [table.as_bytes(), b"\0", image.as_bytes(), b"\0", key.as_bytes(), b"\0", body].concat();
    Digest::of(&bytes).hex().into_bytes()[..32].to_vec()
}

fn written(table: &str, image: &str, key: &str, value: &impl Serialize) -> Result<(Vec<u8>, Vec<u8>), Trouble> {
    let body = serde_json::to_vec(value).map_err(|_| Trouble::Altered)?;
    let sum = sum(table, image, key, &body);
    Ok((body, sum))
}

fn read<T: DeserializeOwned>(table: &str, image: &str, key: &str, body: &[u8], expected: &[u8]) -> Result<T, Trouble> {
    if sum(table, image, key, body) != expected {
        return Err(Trouble::Altered);
    }
    serde_json::from_slice(body).map_err(|_| Trouble::Altered)
}
