//! `dfs mount` and `dfs umount`, and the same as mount(8)'s helper.
//!
//! The mount is served by a process of its own: this program again, with `--foreground`. It says `ready` on its stdout
//! once the mount is there; else the last line of its log is the reason why not. No fork in a threaded process.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use dfs_client::{Client, ClientOptions};
use dfs_common::{Level, Profile, Role};
use dfs_crypto::certificate::Credentials;
use dfs_crypto::key::RootKey;
use dfs_fuse::{MountError, MountOptions, check_mount_point, resolve_mount_point, unmount};

use crate::args::{MountArgs, UmountArgs};
use crate::config::{self, Loaded};
use crate::failure::{Code, Failure, Outcome};
use crate::{files, lateness, process, program, serve};

/// What the serving process says when the mount is there.
const READY: &str = "ready";

/// How long a mount's process may take to hand over what is unwritten once it is unmounted: the client's own deadline
/// for its last write, and a little.
const CLOSE_DEADLINE: Duration = Duration::from_secs(35);

pub(crate) fn mount(arguments: &MountArgs, log_file: Option<&Path>) -> Outcome {
    let loaded = config::find(&arguments.cluster)?;
    let (options, levels) = mount_options(arguments, &loaded)?;
    mount_client(&loaded, &options, levels)?;
    if arguments.foreground {
        if arguments.own_session {
            process::leave_session();
        }
        return serve(&loaded, &options, levels);
    }
    let mut command = foreground_command(&loaded.path, &options.mount_point)?;
    if !arguments.options.is_empty() {
        command.arg("-o").arg(arguments.options.join(","));
    }
    let default = default_log_file(&options.mount_point);
    let log = Log::open(log_file.unwrap_or(&default))?;
    let mut child = log
        .attach(&mut command)?
        .spawn()
        .context("the mount's process can not be started")?;
    wait_ready(&mut child, &log)?;
    Ok(Code::Ok)
}

/// `~/.local/state/dfs/mount-srv-data.log` for a mount on `/srv/data`.
fn default_log_file(mount_point: &Path) -> PathBuf {
    let name = mount_point.to_string_lossy().trim_matches('/').replace('/', "-");
    files::user_path("XDG_STATE_HOME", ".local/state").with_file_name(format!("mount-{name}.log"))
}

/// A daemon's log, and what it says from now on.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    from: u64,
}

impl Log {
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        if let Some(parent) = path.parent() {
            files::make_directory(parent)?;
        }
        let open = || -> std::io::Result<(File, u64)> {
            let file = File::options().create(true).append(true).open(path)?;
            let from = file.metadata()?.len();
            Ok((file, from))
        };
        let (file, from) = open().with_context(|| format!("log file {}", path.display()))?;
        Ok(Self {
            // The process that writes it works in another directory.
            path: std::path::absolute(path)?,
            file,
            from,
        })
    }

    /// Has the command, which is this program, log here; what it says when it can not start or
    /// panics comes here as well.
    pub(crate) fn attach<'a>(&self, command: &'a mut Command) -> anyhow::Result<&'a mut Command> {
        Ok(command.arg("--log-file").arg(&self.path).stderr(self.file.try_clone()?))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Everything since it was opened.
    pub(crate) fn said(&self) -> String {
        let mut text = Vec::new();
        let read = File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.from))?;
            file.read_to_end(&mut text)
        });
        read.map_or_else(|_| String::new(), |_| String::from_utf8_lossy(&text).into_owned())
    }
}

/// This program, serving a mount in the foreground of a session of its own.
pub(crate) fn foreground_command(cluster: &Path, mount_point: &Path) -> Outcome<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["mount", "--foreground", "--own-session", "--cluster"])
        .arg(cluster)
        .arg(mount_point)
        .env_remove("DFS_CLUSTER")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    Ok(command)
}

/// Returns when the child has mounted; else with what it said.
pub(crate) fn wait_ready(child: &mut Child, log: &Log) -> Outcome<()> {
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        let _ = BufReader::new(stdout).read_line(&mut said);
    }
    if said.trim() == READY {
        return Ok(());
    }
    let status = child.wait()?;
    let reason = log.said();
    let last = reason.lines().rev().find_map(|line| line.trim().strip_prefix("dfs: "));
    let last = last.map_or_else(
        || format!("the mount's process ended ({status}); see {}", log.path().display()),
        str::to_owned,
    );
    let mut failure = Failure::new(last);
    if status.code() == Some(Code::Unreachable as i32) {
        failure.code = Code::Unreachable;
    }
    Err(failure)
}

/// A mount is a client; its certificate must say so, and the reason is clearer here than from a handshake.
fn client_credentials(loaded: &Loaded) -> Outcome<Credentials> {
    let credentials = loaded.credentials()?;
    let bearer = credentials.name();
    if matches!(bearer.role, Role::Client | Role::Admin) {
        return Ok(credentials);
    }
    Err(Failure::new(format!(
        "credentials in {} are {bearer}'s; reading files needs a client's, as dfs init writes them to credentials/",
        loaded.config.credentials.display()
    )))
}

/// What every file of a mount is read and written at, whatever its policy.
#[derive(Clone, Copy, Debug, Default)]
struct Levels {
    read: Option<Level>,
    write: Option<Level>,
}

/// This machine's name, for labels.
pub(crate) fn host_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    host.trim().to_owned()
}

/// A client that can read files, not only what is known about them. `what`: its part of the label, beside the host.
pub(crate) fn client_options(loaded: &Loaded, what: &str) -> Outcome<ClientOptions> {
    let credentials = client_credentials(loaded)?;
    let key = loaded.config.credentials.join("root.key");
    let root = RootKey::load(&key).with_context(|| format!("root key {}", key.display()))?;
    let label = format!("{}:{what}", host_name());
    Ok(ClientOptions::new(loaded.config.clone(), credentials, root, label))
}

fn mount_client(loaded: &Loaded, mount: &MountOptions, levels: Levels) -> Outcome<ClientOptions> {
    let mut options = client_options(loaded, &mount.mount_point.display().to_string())?;
    options.keeps_both = !mount.read_only;
    options.read_level = levels.read;
    options.write_level = levels.write;
    Ok(options)
}

fn mount_options(arguments: &MountArgs, loaded: &Loaded) -> Outcome<(MountOptions, Levels)> {
    let root = rustix::process::geteuid().is_root();
    let mut options = MountOptions {
        mount_point: check_mount_point(&arguments.mount_point)?,
        source: loaded.path.display().to_string(),
        read_only: false,
        // Without root, others may look in only if /etc/fuse.conf lets them; then it must be asked for.
        allow_other: root,
        devices: root,
        suid: root,
        exec: true,
        atime: true,
    };
    let mut levels = Levels::default();
    for option in &arguments.options {
        apply_option(&mut options, &mut levels, option)?;
    }
    Ok((options, levels))
}

/// `read=ONE` and the like; `false`: it is something else.
fn apply_level(levels: &mut Levels, option: &str) -> Outcome<bool> {
    let Some((name, value)) = option.split_once('=') else {
        return Ok(false);
    };
    let wrong = |error: dfs_common::Error| Failure::usage(format!("mount option {option:?}: {}", error.detail));
    match name {
        "read" => levels.read = Some(value.parse().map_err(wrong)?),
        "write" => levels.write = Some(value.parse().map_err(wrong)?),
        "profile" => {
            let (read, write) = value.parse::<Profile>().map_err(wrong)?.levels();
            (levels.read, levels.write) = (Some(read), Some(write));
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn apply_option(options: &mut MountOptions, levels: &mut Levels, option: &str) -> Outcome<()> {
    if apply_level(levels, option)? {
        return Ok(());
    }
    match option {
        "ro" => options.read_only = true,
        "rw" => options.read_only = false,
        "dev" => options.devices = true,
        "nodev" => options.devices = false,
        "suid" => options.suid = true,
        "nosuid" => options.suid = false,
        "exec" => options.exec = true,
        "noexec" => options.exec = false,
        "atime" | "strictatime" => options.atime = true,
        "noatime" => options.atime = false,
        "allow_other" => options.allow_other = true,
        "noallow_other" => options.allow_other = false,
        "defaults" | "relatime" | "sync" | "async" | "dirsync" | "auto" | "noauto" | "nofail" | "_netdev" | "user"
        | "nouser" | "users" | "" => {}
        // Of fstab, for others than us.
        other if other.starts_with("x-") || other.starts_with("comment=") => {}
        other => {
            return Err(Failure::usage(format!(
                "mount option {other:?} is not known; see: dfs mount --help"
            )));
        }
    }
    Ok(())
}

/// Mounts and serves, in this process, until it is unmounted or told to stop.
fn serve(loaded: &Loaded, options: &MountOptions, levels: Levels) -> Outcome {
    let runtime = program::runtime()?;
    runtime.block_on(async {
        lateness::watch();
        let descriptors = program::raise_descriptors();
        let shutdown = serve::on_signal()?;
        let client = Client::connect(mount_client(loaded, options, levels)?).await?;
        let mut mounted = dfs_fuse::mount(client.clone(), runtime.handle(), options)?;
        program::tell_descriptors(descriptors);
        tracing::info!(mount_point = %options.mount_point.display(), "mounted");
        say_ready();
        tokio::select! {
            result = mounted.ended() => result?,
            () = shutdown.cancelled() => {
                // Whoever still uses it keeps a dead mount; nobody new comes in.
                let mount_point = options.mount_point.clone();
                let unmounted = tokio::task::spawn_blocking(move || unmount(&mount_point, true)).await;
                tracing::info!(?unmounted, "unmounted because of a signal");
            }
        }
        let closed = tokio::time::timeout(CLOSE_DEADLINE, client.close()).await;
        match closed {
            Ok(Ok(())) => tracing::info!("unmounted, everything is written"),
            Ok(Err(error)) => return Err(error.context("unmounted, but not everything could be written").into()),
            Err(_) => return Err(Failure::new("unmounted, but not everything could be written in time")),
        }
        Ok(Code::Ok)
    })
}

/// Nobody may be listening, which is fine.
fn say_ready() {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{READY}").and_then(|()| stdout.flush());
}

pub(crate) fn umount(arguments: &UmountArgs) -> Outcome {
    let path = resolve_mount_point(&arguments.mount_point)?;
    let entry = dfs_fuse::mounts::mounted_on(&path)?;
    match entry {
        Some(entry) if entry.file_system == dfs_fuse::mounts::FILE_SYSTEM_TYPE => {}
        Some(entry) => {
            return Err(Failure::new(format!(
                "{} is not a mount of dfs but of {}",
                path.display(),
                entry.file_system
            )));
        }
        None => return Err(MountError::NotMounted(path).into()),
    }
    match unmount(&path, arguments.force) {
        Err(MountError::InUse(path)) => Err(in_use(&path)),
        other => other.map(|()| Code::Ok).map_err(Failure::from),
    }
}

/// Says who is in the way.
pub(crate) fn in_use(path: &Path) -> Failure {
    let users = process::users_of(path);
    if users.is_empty() {
        return MountError::InUse(path.to_path_buf()).into();
    }
    Failure::new(format!(
        "{} is busy: used by {}; stop that, or detach it: --force",
        path.display(),
        users.join(", ")
    ))
}

/// `mount.dfs SOURCE DIR [-sfnv] [-N namespace] [-o options] [-t type]`, as mount(8) calls it, for clap.
pub(crate) fn helper_arguments(arguments: &[OsString]) -> Outcome<Vec<OsString>> {
    let mut positional = Vec::new();
    let mut options = Vec::new();
    let mut rest = arguments.iter().skip(1);
    while let Some(argument) = rest.next() {
        match argument.to_str() {
            Some("-o") => options.extend(rest.next().cloned()),
            Some("-t" | "-N") => {
                rest.next();
            }
            // Sloppy, verbose, no mtab: nothing of that changes anything here.
            Some("-s" | "-v" | "-n" | "-f" | "-sv" | "-vs") => {}
            Some("-r") => options.push("ro".into()),
            Some("-w") => options.push("rw".into()),
            Some(option) if option.starts_with('-') && option.len() > 1 => {
                return Err(Failure::usage(format!("mount.dfs: option {option} is not known")));
            }
            _ => positional.push(argument.clone()),
        }
    }
    let [source, mount_point] = positional.as_slice() else {
        return Err(Failure::usage(
            "mount.dfs: usage: mount.dfs CLUSTER.TOML MOUNTPOINT [-o OPTIONS]",
        ));
    };
    let mut translated: Vec<OsString> = ["dfs", "mount", "--cluster"].map(OsString::from).into();
    translated.extend([source.clone(), mount_point.clone()]);
    for option in options {
        translated.extend([OsStr::new("-o").to_owned(), option]);
    }
    Ok(translated)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_helper_understands_mount() {
        let translate = |line: &str| {
            let arguments: Vec<_> = line.split(' ').map(OsString::from).collect();
            helper_arguments(&arguments).map(|list| list.join(OsStr::new(" ")).into_string().unwrap())
        };
        assert_eq!(
            translate("mount.dfs /etc/dfs/cluster.toml /mnt -o rw,noatime").unwrap(),
            "dfs mount --cluster /etc/dfs/cluster.toml /mnt -o rw,noatime"
        );
        assert_eq!(
            translate("/sbin/mount.dfs c.toml /mnt -s -v -n -t dfs").unwrap(),
            "dfs mount --cluster c.toml /mnt"
        );
        assert_eq!(translate("mount.dfs c.toml").unwrap_err().code, Code::Usage);
        assert_eq!(translate("mount.dfs c.toml /mnt --odd").unwrap_err().code, Code::Usage);
    }

    #[test]
    fn options_of_fstab() {
        let mut levels = Levels::default();
        let mut options = MountOptions {
            mount_point: "/mnt".into(),
            source: "x".into(),
            read_only: false,
            allow_other: true,
            devices: true,
            suid: true,
            exec: true,
            atime: true,
        };
        for option in [
            "ro",
            "nodev",
            "nosuid",
            "noexec",
            "noatime",
            "_netdev",
            "x-systemd.automount",
            "defaults",
            "profile=call-records",
            "write=all",
        ] {
            apply_option(&mut options, &mut levels, option).unwrap();
        }
        assert!(options.read_only && !options.devices && !options.suid && !options.exec && !options.atime);
        for option in ["colour", "read=TWO", "profile=fast"] {
            let failure = apply_option(&mut options, &mut levels, option).unwrap_err();
            assert_eq!(failure.code, Code::Usage, "{option}");
        }
        assert_eq!((levels.read, levels.write), (Some(Level::One), Some(Level::All)));
    }
}
