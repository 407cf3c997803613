//! Disks that can be filled, whose power can be cut, or which take no time.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::cluster::DevCluster;
use crate::process::{run, shell};

/// A file system in an image file, mounted where a server keeps its data, so that it can be filled or lose its power.
#[derive(Debug)]
pub struct LoopDisk {
    image: PathBuf,
    at: PathBuf,
}

impl LoopDisk {
    /// Moves the data of a server that is not running to a disk of its own.
    #[must_use]
    pub fn under(cluster: &DevCluster, name: &str, kind: &str, size_mib: u32) -> Self {
        let at = data_directory(cluster, name);
        let image = cluster.local().join(format!("{name}.img"));
        shell(&format!("mv {0} {0}.moved && mkdir {0}", at.display()));
        let disk = Self::create(&image, &at, kind, size_mib);
        shell(&format!(
            "cp -a {0}.moved/. {0}/ && rm -rf {0}.moved && sync -f {0}",
            disk.at.display()
        ));
        disk
    }

    /// Makes and mounts one on an existing directory.
    #[must_use]
    pub fn create(image: &Path, at: &Path, kind: &str, size_mib: u32) -> Self {
        let quiet = if kind == "xfs" { "-q" } else { "-qF" };
        shell(&format!(
            "truncate -s {size_mib}M {0} && mkfs.{kind} {quiet} {0}",
            image.display()
        ));
        let disk = Self {
            image: image.to_owned(),
            at: at.to_owned(),
        };
        disk.mount();
        disk
    }

    pub fn mount(&self) {
        shell(&format!("mount -o loop {} {}", self.image.display(), self.at.display()));
    }

    pub fn unmount(&self) {
        let start = Instant::now();
        while !run(std::process::Command::new("umount").arg(&self.at)).ok() {
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "{} does not unmount",
                self.at.display()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// What happens to a machine without power, and to its disk.
    pub fn cut_power(&self, cluster: &DevCluster, name: &str) {
        cut_power(&[(cluster.pid(name), self)]);
        self.unmount();
    }
}

/// A file system in memory: what a test measures there does not depend on who else uses the disk of the machine.
#[derive(Debug)]
pub struct MemoryDisk(PathBuf);

impl MemoryDisk {
    #[must_use]
    pub fn on(at: &Path) -> Self {
        shell(&format!("mount -t tmpfs -o size=4g,mode=755 tmpfs {}", at.display()));
        Self(at.to_owned())
    }
}

impl Drop for MemoryDisk {
    fn drop(&mut self) {
        let _ = run(std::process::Command::new("umount").arg("-l").arg(&self.0));
    }
}

/// Machines lose their power at the same moment: SIGSTOP, shut the file systems down without flushing their logs, kill.
pub fn cut_power(victims: &[(u32, &LoopDisk)]) {
    let shutdown = "import fcntl,os,struct,sys; [fcntl.ioctl(os.open(at,os.O_RDONLY),0x8004587D,struct.pack('I',2)) for at in sys.argv[1:]]";
    let pids: Vec<String> = victims.iter().map(|(pid, _)| pid.to_string()).collect();
    let disks: Vec<String> = victims.iter().map(|(_, disk)| disk.at.display().to_string()).collect();
    if victims.is_empty() {
        return;
    }
    shell(&format!(
        "kill -STOP {0} && python3 -c \"{shutdown}\" {1} && kill -9 {0}",
        pids.join(" "),
        disks.join(" ")
    ));
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let _ = run(std::process::Command::new("umount").args(["-l"]).arg(&self.at));
    }
}

/// `data` of the node's own configuration file.
fn data_directory(cluster: &DevCluster, name: &str) -> PathBuf {
    let mut found = Vec::new();
    find(&cluster.data, &mut found);
    for file in found {
        let text = fs::read_to_string(&file).expect("a readable configuration");
        let Ok(config) = text.parse::<toml::Table>() else {
            continue;
        };
        let Some(node) = config.get("node").and_then(toml::Value::as_table) else {
            continue;
        };
        if node.get("name").and_then(toml::Value::as_str) == Some(name) {
            let data = Path::new(node["data"].as_str().expect("a path"));
            return if data.is_absolute() {
                data.to_path_buf()
            } else {
                file.parent().expect("a directory").join(data)
            };
        }
    }
    panic!("no configuration of {name} under {}", cluster.data.display());
}

fn find(at: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(at).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            find(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "toml") {
            found.push(path);
        }
    }
}
