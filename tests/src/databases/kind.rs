//! Which databases there are.

use super::engine::{Engine, Place};
use super::etcd::Etcd;
use super::postgres::Postgres;
use super::redis::Redis;
use super::sqlite::{Journal, Sqlite};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Postgres,
    SqliteWal,
    SqliteRollback,
    Etcd,
    Redis,
}

impl Kind {
    pub const ALL: [Self; 5] = [
        Self::Postgres,
        Self::SqliteWal,
        Self::SqliteRollback,
        Self::Etcd,
        Self::Redis,
    ];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::SqliteWal => "sqlite-wal",
            Self::SqliteRollback => "sqlite-rollback",
            Self::Etcd => "etcd",
            Self::Redis => "redis",
        }
    }

    /// All whose name begins like that: `sqlite` is both of them.
    ///
    /// # Errors
    /// Names what there is.
    pub fn parse(name: &str) -> Result<Vec<Self>, String> {
        let known: Vec<Self> = Self::ALL
            .into_iter()
            .filter(|kind| !name.is_empty() && kind.name().starts_with(name))
            .collect();
        if known.is_empty() {
            let names: Vec<_> = Self::ALL.iter().map(|kind| kind.name()).collect();
            return Err(format!("there is no database {name:?}; there are {}", names.join(", ")));
        }
        Ok(known)
    }

    /// # Errors
    /// Something of the machine that it needs is not there.
    pub fn engine(self, place: Place) -> Result<Box<dyn Engine>, String> {
        Ok(match self {
            Self::Postgres => Box::new(Postgres::new(place)?),
            Self::SqliteWal => Box::new(Sqlite::new(place, Journal::Wal)),
            Self::SqliteRollback => Box::new(Sqlite::new(place, Journal::Rollback)),
            Self::Etcd => Box::new(Etcd::new(place)?),
            Self::Redis => Box::new(Redis::new(place)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_stand_for_two_databases() {
        assert_eq!(Kind::parse("sqlite"), Ok(vec![Kind::SqliteWal, Kind::SqliteRollback]));
        assert_eq!(Kind::parse("etcd"), Ok(vec![Kind::Etcd]));
        assert!(Kind::parse("oracle").unwrap_err().contains("postgres"));
        assert!(Kind::parse("").is_err());
    }
}
