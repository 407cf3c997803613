//! Mounting and unmounting.
//!
//! Root mounts by the system call alone, as file system type `fuse.dfs`, and needs no package of FUSE's. Anybody else
//! goes through the setuid helper `fusermount3` (package fuse3), which fuser calls. A mount point is looked at before
//! anything happens to it, because the kernel's own errors name neither the thing nor the next step.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use dfs_client::Client;
use fuser::{Config, MountOption, Session, SessionACL};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::filesystem::Adapter;
use crate::mounts::{self, FILE_SYSTEM_TYPE};

/// Threads that take requests from the kernel. They only hand them on, so two are enough, and fewer stay warmer; each has a 16 MiB buffer of
/// fuser's, of which it touches what the largest request needs.
const FUSE_THREADS: usize = 2;

/// Window of sequential read-ahead. The kernel starts every FUSE mount with 128 KiB, which keeps one small request in
/// flight; this keeps several of 1 MiB.
const READ_AHEAD_KIB: u32 = 4096;

/// Where and how to mount.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a mount option of its own")]
pub struct MountOptions {
    /// As [`resolve_mount_point`] returns it.
    pub mount_point: PathBuf,
    /// What `mount` and `df` show as the source: the cluster's file.
    pub source: String,
    pub read_only: bool,
    /// Users other than the one who mounts may use it; the kernel checks permissions either way.
    pub allow_other: bool,
    pub devices: bool,
    pub suid: bool,
    pub exec: bool,
    pub atime: bool,
}

/// Why there is no mount, or still one: one line each.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("mount point {0} does not exist; create it first: mkdir -p {0}")]
    Missing(PathBuf),
    #[error("mount point {0} is not a directory")]
    NotDirectory(PathBuf),
    #[error("mount point {0} is not empty; mount on an empty directory")]
    NotEmpty(PathBuf),
    #[error("mount point {path} is busy: {file_system} is mounted there already; unmount it first: dfs umount {path}")]
    Busy { path: PathBuf, file_system: String },
    #[error("mount point {0} holds a mount whose process is gone; remove it first: dfs umount --force {0}")]
    Dead(PathBuf),
    #[error("mount point {path} can not be used: {source}")]
    Unusable { path: PathBuf, source: io::Error },
    #[error("there is no /dev/fuse; load the kernel's module (modprobe fuse) or give the container the device")]
    NoDevice,
    #[error("/dev/fuse can not be opened: {0}; mount as root, or as a user who may use the device")]
    Device(io::Error),
    #[error("not permitted to mount on {0}; root needs CAP_SYS_ADMIN, others need fusermount3 (package fuse3)")]
    NotPermitted(PathBuf),
    #[error("mounting on {path} failed: {source}")]
    Mount { path: PathBuf, source: io::Error },
    #[error("{0} is not mounted")]
    NotMounted(PathBuf),
    #[error(
        "{0} is busy: a process has a file or its working directory there; stop it, or detach: dfs umount --force {0}"
    )]
    InUse(PathBuf),
    #[error("unmounting {path} failed: {source}")]
    Unmount { path: PathBuf, source: io::Error },
    #[error("the list of mounts can not be read: {0}")]
    MountTable(io::Error),
}

/// A mount that is being served.
#[derive(Debug)]
pub struct Mounted {
    mount_point: PathBuf,
    ended: oneshot::Receiver<io::Result<()>>,
}

impl Mounted {
    /// Returns when the mount is gone, by whomever: everything that the kernel had to say has been said.
    ///
    /// # Errors
    /// When serving failed.
    pub async fn ended(&mut self) -> io::Result<()> {
        (&mut self.ended).await.unwrap_or(Ok(()))
    }

    #[must_use]
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }
}

/// Absolute and without symlinks, also where a dead mount answers no question about itself.
///
/// # Errors
/// [`MountError::Missing`] and the like for the directory above it.
pub fn resolve_mount_point(path: &Path) -> Result<PathBuf, MountError> {
    let unusable = |source| MountError::Unusable {
        path: path.to_path_buf(),
        source,
    };
    let absolute = std::path::absolute(path).map_err(unusable)?;
    match fs::canonicalize(&absolute) {
        Ok(resolved) => Ok(resolved),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(MountError::Missing(absolute)),
        Err(error) => {
            let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
                return Err(unusable(error));
            };
            Ok(fs::canonicalize(parent).map_err(unusable)?.join(name))
        }
    }
}

/// Looks at a mount point and at /dev/fuse without changing anything. Returns the resolved path.
///
/// # Errors
/// One for each thing that can be wrong.
pub fn check_mount_point(path: &Path) -> Result<PathBuf, MountError> {
    let resolved = resolve_mount_point(path)?;
    if let Some(entry) = mounts::mounted_on(&resolved).map_err(MountError::MountTable)? {
        let dead = fs::metadata(&resolved).is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN));
        return Err(if dead {
            MountError::Dead(resolved)
        } else {
            MountError::Busy {
                path: resolved,
                file_system: entry.file_system,
            }
        });
    }
    let unusable = |source| MountError::Unusable {
        path: resolved.clone(),
        source,
    };
    let metadata = fs::metadata(&resolved).map_err(unusable)?;
    if !metadata.is_dir() {
        return Err(MountError::NotDirectory(resolved));
    }
    if fs::read_dir(&resolved).map_err(unusable)?.next().is_some() {
        return Err(MountError::NotEmpty(resolved));
    }
    open_device()?;
    Ok(resolved)
}

fn open_device() -> Result<File, MountError> {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => MountError::NoDevice,
            _ => MountError::Device(error),
        })
}

/// Mounts and serves until unmounted.
///
/// # Errors
/// As [`check_mount_point`], and what the kernel says about mounting.
pub fn mount(client: Client, runtime: &Handle, options: &MountOptions) -> Result<Mounted, MountError> {
    let path = options.mount_point.clone();
    let failed = |source| MountError::Mount {
        path: path.clone(),
        source,
    };
    let adapter = Adapter::new(client, runtime.clone());
    let config = session_config(options);
    let session = if rustix::process::geteuid().is_root() {
        let device = mount_as_root(options)?;
        Session::from_fd(adapter, device, config.acl, config).map_err(|error| {
            let _ = rustix::mount::unmount(&path, UnmountFlags::DETACH);
            failed(error)
        })?
    } else {
        Session::new(adapter, &path, &config).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound => MountError::NotPermitted(path.clone()),
            _ => failed(error),
        })?
    };
    let (ended, waiting) = oneshot::channel();
    thread::Builder::new()
        .name("fuse-session".into())
        .spawn(move || {
            let _ = ended.send(session.run());
        })
        .map_err(failed)?;
    widen_read_ahead(&options.mount_point);
    Ok(Mounted {
        mount_point: options.mount_point.clone(),
        ended: waiting,
    })
}

fn session_config(options: &MountOptions) -> Config {
    let mut config = Config::default();
    config.n_threads = Some(FUSE_THREADS);
    config.clone_fd = true;
    config.acl = if options.allow_other {
        SessionACL::All
    } else {
        SessionACL::Owner
    };
    let either = |wanted, yes, no| if wanted { yes } else { no };
    config.mount_options = vec![
        MountOption::FSName(options.source.clone()),
        MountOption::Subtype("dfs".into()),
        MountOption::DefaultPermissions,
        either(options.read_only, MountOption::RO, MountOption::RW),
        either(options.devices, MountOption::Dev, MountOption::NoDev),
        either(options.suid, MountOption::Suid, MountOption::NoSuid),
        either(options.exec, MountOption::Exec, MountOption::NoExec),
        either(options.atime, MountOption::Atime, MountOption::NoAtime),
    ];
    config
}

fn mount_as_root(options: &MountOptions) -> Result<OwnedFd, MountError> {
    let path = &options.mount_point;
    let failed = |source| MountError::Mount {
        path: path.clone(),
        source,
    };
    let device = OwnedFd::from(open_device()?);
    let mode = fs::metadata(path).map_err(failed)?.mode();
    let data = kernel_options(device.as_raw_fd(), mode, options.allow_other);
    let data = CString::new(data).map_err(|error| failed(error.into()))?;
    let mut flags = MountFlags::empty();
    for (set, flag) in [
        (options.read_only, MountFlags::RDONLY),
        (!options.devices, MountFlags::NODEV),
        (!options.suid, MountFlags::NOSUID),
        (!options.exec, MountFlags::NOEXEC),
        (!options.atime, MountFlags::NOATIME),
    ] {
        if set {
            flags |= flag;
        }
    }
    rustix::mount::mount(options.source.as_str(), path, FILE_SYSTEM_TYPE, flags, data.as_c_str()).map_err(|error| {
        match error {
            Errno::PERM | Errno::ACCESS => MountError::NotPermitted(path.clone()),
            Errno::NODEV => MountError::NoDevice,
            other => failed(other.into()),
        }
    })?;
    Ok(device)
}

fn kernel_options(device: i32, mount_point_mode: u32, allow_other: bool) -> String {
    let user = rustix::process::getuid().as_raw();
    let group = rustix::process::getgid().as_raw();
    let mut data = format!(
        "fd={device},rootmode={:o},user_id={user},group_id={group},default_permissions",
        mount_point_mode & libc::S_IFMT
    );
    if allow_other {
        data.push_str(",allow_other");
    }
    data
}

/// Best effort: without it reading is slower, not wrong.
fn widen_read_ahead(mount_point: &Path) {
    let Ok(Some(entry)) = mounts::mounted_on(mount_point) else {
        return;
    };
    let setting = format!("/sys/class/bdi/{}/read_ahead_kb", entry.device);
    if let Err(error) = fs::write(&setting, READ_AHEAD_KIB.to_string()) {
        tracing::debug!("read-ahead stays at the kernel's default: {setting}: {error}");
    }
}

/// Unmounts `path`. With `force`, requests in progress are aborted and, if it is still in use, it is detached: gone for
/// everybody who looks, and for good when the last user lets go. Never waits for the cluster.
///
/// # Errors
/// [`MountError::NotMounted`], [`MountError::InUse`], or what the kernel says.
pub fn unmount(path: &Path, force: bool) -> Result<(), MountError> {
    if mounts::mounted_on(path).map_err(MountError::MountTable)?.is_none() {
        return Err(MountError::NotMounted(path.to_path_buf()));
    }
    if !rustix::process::geteuid().is_root() {
        return unmount_by_helper(path, force);
    }
    let plain = rustix::mount::unmount(path, UnmountFlags::NOFOLLOW);
    let result = match plain {
        Err(Errno::BUSY) if force => {
            // FORCE aborts the connection, which frees whoever waits for an answer; then the mount can be let go.
            let forced = rustix::mount::unmount(path, UnmountFlags::NOFOLLOW | UnmountFlags::FORCE);
            forced.or_else(|_| rustix::mount::unmount(path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH))
        }
        other => other,
    };
    result.map_err(|error| match error {
        Errno::BUSY => MountError::InUse(path.to_path_buf()),
        other => MountError::Unmount {
            path: path.to_path_buf(),
            source: other.into(),
        },
    })
}

fn unmount_by_helper(path: &Path, force: bool) -> Result<(), MountError> {
    let mut helper = Command::new("fusermount3");
    helper.arg("-u");
    if force {
        helper.arg("-z");
    }
    let failed = |source| MountError::Unmount {
        path: path.to_path_buf(),
        source,
    };
    let output = helper
        .arg("--")
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    if said.contains("busy") {
        return Err(MountError::InUse(path.to_path_buf()));
    }
    Err(failed(io::Error::other(said)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bad_mount_point_has_its_line() {
        let scratch = tempfile::tempdir().unwrap();
        let missing = scratch.path().join("missing");
        assert!(matches!(check_mount_point(&missing), Err(MountError::Missing(_))));
        let file = scratch.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(check_mount_point(&file), Err(MountError::NotDirectory(_))));
        assert!(matches!(
            check_mount_point(scratch.path()),
            Err(MountError::NotEmpty(_))
        ));
        assert!(matches!(
            check_mount_point(Path::new("/proc")),
            Err(MountError::Busy { .. })
        ));
        let busy = check_mount_point(Path::new("/proc")).unwrap_err().to_string();
        assert!(busy.contains("/proc") && busy.contains("busy"), "{busy}");
        assert!(matches!(unmount(&file, true), Err(MountError::NotMounted(_))));
    }

    #[test]
    fn mount_points_are_resolved() {
        let scratch = tempfile::tempdir().unwrap();
        let real = scratch.path().join("real");
        fs::create_dir(&real).unwrap();
        let link = scratch.path().join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert_eq!(resolve_mount_point(&link).unwrap(), fs::canonicalize(&real).unwrap());
    }

    #[test]
    fn the_kernel_is_told_type_and_owner() {
        let told = kernel_options(7, 0o040_755, true);
        assert!(told.starts_with("fd=7,rootmode=40000,user_id="), "{told}");
        assert!(told.ends_with(",default_permissions,allow_other"), "{told}");
        assert!(!kernel_options(7, 0o040_755, false).contains("allow_other"));
    }
}
