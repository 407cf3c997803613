//! Small secret files: read whole with a bound, replaced whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use zeroize::Zeroizing;

use crate::error::{CryptoError, Result};

/// No credential is longer; a wrong path does not fill the memory.
const MAX_SIZE_BYTES: u64 = 64 << 10;

pub(crate) fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    let fail = |source| CryptoError::File {
        path: path.to_path_buf(),
        source,
    };
    let mut bytes = Zeroizing::new(Vec::new());
    File::open(path)
        .map_err(fail)?
        .take(MAX_SIZE_BYTES)
        .read_to_end(&mut bytes)
        .map_err(fail)?;
    Ok(bytes)
}

/// Write-temp, fsync, rename, fsync directory; readable by the owner only.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let fail = |source| CryptoError::File {
        path: path.to_path_buf(),
        source,
    };
    let temporary = path.with_extension("tmp");
    let _ = fs::remove_file(&temporary);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(fail)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(fail)?;
    fs::rename(&temporary, path).map_err(fail)?;
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or_else(|| Path::new("."));
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(fail)
}
