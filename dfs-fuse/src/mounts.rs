//! What is mounted where, from `/proc/self/mountinfo`.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// File system type that a mount of dfs shows.
pub const FILE_SYSTEM_TYPE: &str = "fuse.dfs";

/// One line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// `major:minor`.
    pub device: String,
    pub mount_point: PathBuf,
    pub file_system: String,
    pub source: OsString,
}

/// Everything that is mounted, oldest first.
///
/// # Errors
/// When /proc is not there.
pub fn mounted() -> io::Result<Vec<MountEntry>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// What is mounted on exactly this path, the topmost if there are several.
///
/// # Errors
/// When /proc is not there.
pub fn mounted_on(path: &Path) -> io::Result<Option<MountEntry>> {
    Ok(mounted()?.into_iter().rev().find(|entry| entry.mount_point == path))
}

fn parse(mountinfo: &[u8]) -> Vec<MountEntry> {
    mountinfo.split(|&byte| byte == b'\n').filter_map(parse_line).collect()
}

/// `36 35 98:0 /root /mnt rw,noatime master:1 - ext3 /dev/root rw`: the fields before the dash vary in number.
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|&byte| byte == b' ');
    let device = String::from_utf8(fields.nth(2)?.to_vec()).ok()?;
    let mount_point = unescape(fields.nth(1)?);
    let mut rest = fields.skip_while(|&field| field != b"-").skip(1);
    Some(MountEntry {
        device,
        mount_point: PathBuf::from(mount_point),
        file_system: String::from_utf8_lossy(rest.next()?).into_owned(),
        source: unescape(rest.next()?),
    })
}

/// The kernel writes blank, tab, newline and backslash as `\ooo`.
fn unescape(field: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|_| byte == b'\\');
        let code = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(code) = code {
            plain.push(code);
            rest = &tail[3..];
        } else {
            plain.push(byte);
            rest = tail;
        }
    }
    OsString::from_vec(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo() {
        let text = b"22 27 0:21 / /proc rw,relatime - proc proc rw\n\
            99 27 0:55 / /mnt/with\\040blank rw,nosuid shared:3 master:4 - fuse.dfs /etc/dfs/cluster.toml rw,user_id=0\n\
            garbage\n";
        let entries = parse(text);
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].file_system, "proc");
        assert_eq!(
            entries[1],
            MountEntry {
                device: "0:55".into(),
                mount_point: "/mnt/with blank".into(),
                file_system: FILE_SYSTEM_TYPE.into(),
                source: "/etc/dfs/cluster.toml".into(),
            }
        );
    }

    #[test]
    fn escapes() {
        assert_eq!(unescape(b"a\\134b\\012"), "a\\b\n");
        assert_eq!(unescape(b"a\\9"), "a\\9");
        assert_eq!(unescape(b"\\"), "\\");
    }

    #[test]
    fn root_is_mounted() {
        assert!(mounted_on(Path::new("/")).unwrap().is_some());
        assert!(mounted_on(Path::new("/proc/nowhere")).unwrap().is_none());
    }
}
