//! `dfs sync`: the kernel tells a FUSE file system nothing of sync(2), so the mount is asked by an extended attribute.

use dfs_common::policy::SYNC_ATTRIBUTE;
use rustix::fs::lgetxattr;
use rustix::io::Errno;

use crate::args::SyncArgs;
use crate::failure::{Code, Failure, Outcome};
use crate::place::on_a_mount;

pub(crate) fn run(args: &SyncArgs) -> Outcome {
    let (_, entry) = on_a_mount(&args.path)?;
    let mount_point = entry.mount_point;
    match lgetxattr(&mount_point, SYNC_ATTRIBUTE, &mut [0; 64][..]) {
        Ok(_) => Ok(Code::Ok),
        Err(Errno::NODATA) => Err(Failure::new(format!(
            "{}: this mount is of a dfs that can not be asked to sync; mount it anew with this version",
            mount_point.display()
        ))),
        Err(error) => Err(Failure::new(format!(
            "{}: not everything is durable: {error}; the log of the mount says which files, and so does fsync of them",
            mount_point.display()
        ))),
    }
}
