//! The FUSE adapter: kernel requests in, calls of [`dfs_client::Client`] out, errno back.
//!
//! Nothing is decided here but how the two words of the kernel and of the client map to each other. Invariants: every
//! request is answered exactly once; a request never holds a FUSE thread while it waits for the cluster; a request
//! whose process was killed is answered at once, so that the process can go.

mod convert;
mod directory;
mod filesystem;
mod mount;
pub mod mounts;
mod privileges;
mod recent;
mod requests;
mod signals;

pub use mount::{MountError, MountOptions, Mounted, check_mount_point, mount, resolve_mount_point, unmount};
