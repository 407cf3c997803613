//! Values of rows as types: the one way rows are encoded and read back.

use dfs_common::codec;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Row, Rows, StoreError};

pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    codec::encode(value).map_err(StoreError::Encode)
}

pub fn decode<T: DeserializeOwned>(key: &[u8], value: &[u8]) -> Result<T, StoreError> {
    codec::decode(value).map_err(|source| StoreError::Row {
        kind: key.first().map_or('?', |&tag| char::from(tag)),
        source,
    })
}

pub fn get<T: DeserializeOwned, R: Rows + ?Sized>(rows: &R, key: &[u8]) -> Result<Option<T>, StoreError> {
    rows.get(key)?.map(|value| decode(key, &value)).transpose()
}

/// Calls `each` for every row of a range, reading `page` rows at a time.
pub fn for_each_row<R: Rows + ?Sized>(
    rows: &R,
    (mut from, to): (Vec<u8>, Vec<u8>),
    page: usize,
    mut each: impl FnMut(Row) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    loop {
        let found = rows.scan(&from, &to, page)?;
        let complete = found.len() < page;
        if let Some((last, _)) = found.last() {
            from.clone_from(last);
            from.push(0);
        }
        found.into_iter().try_for_each(&mut each)?;
        if complete {
            return Ok(());
        }
    }
}
