//! Who may ask what, now: epoch, role, lease and the shape of a mutation.

use bytes::Bytes;
use dfs_common::planted::{self, Bug};
use dfs_common::units::{BLOCK_SIZE_BYTES, MAX_CHUNK_SIZE_BYTES, MAX_PAYLOAD_SIZE_BYTES, SEAL_SIZE_BYTES};
use dfs_common::wire::storage::{MutateRequest, Mutation};
use dfs_common::{ChunkId, ChunkVersion, CutEpoch, Epoch, Error, ErrorCode, Level, SessionId, StorageId};

use super::pending::ChunkQueue;
use super::types::{Now, StoreView};
use super::{MAX_PENDING, MAX_PENDING_BYTES, MAX_PENDING_PER_CHUNK, ReplicaCore, Role};

const MAX_BLOCKS: u64 = MAX_CHUNK_SIZE_BYTES as u64 / BLOCK_SIZE_BYTES as u64;

impl ReplicaCore {
    pub(super) fn stale(&self, epoch: Epoch) -> Error {
        Error::new(
            ErrorCode::StaleEpoch,
            format!(
                "chain {} is in epoch {} at storage-{}, the request in {epoch}: refresh the routing table",
                self.chain,
                self.epoch(),
                self.node
            ),
        )
    }

    pub(super) fn outside(&self, what: &str) -> Error {
        Error::new(
            ErrorCode::NotInChain,
            format!(
                "storage-{} is not {what} of chain {} in epoch {}: refresh the routing table",
                self.node,
                self.chain,
                self.epoch()
            ),
        )
    }

    /// What every request must pass.
    fn admit(&self, epoch: Epoch) -> Result<(), Error> {
        if let Some(reason) = &self.fault {
            return Err(Error::new(
                ErrorCode::Poisoned,
                format!("storage-{} acknowledges nothing: {reason}", self.node),
            ));
        }
        if self.config.is_none() || (epoch != self.epoch() && !planted::is(Bug::StaleEpochServed)) {
            return Err(self.stale(epoch));
        }
        if !self.orphans.is_empty() {
            return Err(Error::new(
                ErrorCode::Overloaded,
                format!("chain {} settles its last configuration: try again", self.chain),
            ));
        }
        Ok(())
    }

    /// A client's request to a serving member. The lease matters here only: what a neighbour acknowledges reaches a
    /// client through the head, which has to have its own.
    pub(super) fn admit_client(&self, now: Now, epoch: Epoch) -> Result<(), Error> {
        self.admit(epoch)?;
        let Role::Serving { .. } = self.role else {
            return Err(self.outside("a serving member"));
        };
        self.check_lease(now)
    }

    pub(super) fn check_lease(&self, now: Now) -> Result<(), Error> {
        if now.lease {
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::LeaseLost,
            format!(
                "storage-{} has no lease from the metadata group: refresh, or try another",
                self.node
            ),
        ))
    }

    /// Who was evicted is no more believed: what it left open may be gone, and what it held may be somebody else's. Asked in the
    /// step that takes the request in, so that once this node has said that it knows of an eviction, nothing of that session
    /// comes in any more.
    pub(super) fn check_session(session: SessionId, store: &dyn StoreView) -> Result<(), Error> {
        if store.admits(session) {
            return Ok(());
        }
        Err(session_expired(session))
    }

    pub(super) fn admit_at_head(&self, now: Now, epoch: Epoch) -> Result<(), Error> {
        self.admit_client(now, epoch)?;
        if self.is_head() {
            Ok(())
        } else {
            Err(self.outside("the head"))
        }
    }

    /// A neighbour's message: only from this member's predecessor.
    pub(super) fn admit_predecessor(&self, from: StorageId, epoch: Epoch) -> Result<(), Error> {
        self.admit(epoch)?;
        match self.role {
            Role::Serving { predecessor, .. } | Role::Syncing { predecessor } if predecessor == Some(from) => Ok(()),
            _ => Err(self.outside(&format!("the successor of storage-{from}"))),
        }
    }

    /// A message from the member after this one.
    pub(super) fn admit_successor(&self, from: StorageId, epoch: Epoch) -> Result<(), Error> {
        self.admit(epoch)?;
        if self.successor() == Some(from) {
            Ok(())
        } else {
            Err(self.outside(&format!("the predecessor of storage-{from}")))
        }
    }

    pub(super) fn admit_resync(&self, from: StorageId, epoch: Epoch) -> Result<(), Error> {
        self.admit_predecessor(from, epoch)?;
        match self.role {
            Role::Syncing { .. } => Ok(()),
            _ => Err(self.outside("a syncing member")),
        }
    }

    pub(super) fn check_level(&self, level: Level) -> Result<(), Error> {
        let serving = self.config.as_ref().map_or(0, |config| config.serving().count());
        if serving >= level.min_in_sync() {
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::TooFewReplicas,
            format!(
                "chain {} has {serving} replica(s) in sync and {level} needs {}: waits for repair",
                self.chain,
                level.min_in_sync()
            ),
        ))
    }

    /// Whether a mutation still counts, given the cuts that the chunk has seen. What brings back a member's writes knows no epoch.
    pub(super) fn check_cut(&self, request: &MutateRequest, store: &dyn StoreView) -> Result<(), Error> {
        let cut = self
            .queues
            .get(&request.chunk)
            .map_or_else(|| store.cut(request.chunk), |queue| queue.cut(request.chunk, store));
        if cut == CutEpoch::GONE {
            return Err(gone(request.chunk));
        }
        if request.cut == CutEpoch::GONE {
            return Err(Error::new(
                ErrorCode::BadMessage,
                "only the metadata group says that a file is removed",
            ));
        }
        if request.id.is_system() || request.cut >= cut || planted::is(Bug::CutUnchecked) {
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::StaleCut,
            format!(
                "chunk {} has seen truncation epoch {cut}, and the request comes from {}: read the file's attributes again",
                request.chunk, request.cut
            ),
        ))
    }

    /// Conditions and bounds, at the head.
    pub(super) fn check_staging(
        &self,
        request: &MutateRequest,
        payload: &Bytes,
        store: &dyn StoreView,
    ) -> Result<(), Error> {
        let empty = ChunkQueue::default();
        let queue = self.queues.get(&request.chunk).unwrap_or(&empty);
        if let Mutation::Write { conditions, .. } = &request.mutation {
            for condition in conditions {
                let found = queue.block_version(request.chunk, condition.block, store);
                if found != condition.version && !planted::is(Bug::ConditionIgnored) {
                    return Err(Error::new(
                        ErrorCode::ConditionFailed,
                        format!(
                            "chunk {} block {} is at version {found}, not {}: read it again and merge",
                            request.chunk, condition.block, condition.version
                        ),
                    ));
                }
            }
            let cut = queue.trimmed(request.chunk, store);
            if let Some(expected) = request.uncut_since.filter(|&expected| expected != cut) {
                return Err(Error::new(
                    ErrorCode::ConditionFailed,
                    format!(
                        "chunk {} was last cut at {cut}, not at {expected}: compare again",
                        request.chunk
                    ),
                ));
            }
            if let Some(error) = queue.blocked() {
                return Err(error);
            }
            // What a member brought back is little, and a second copy of all the rest waits for it: it may use the reserve.
            if request.id.is_system() {
                return self.check_bounds(request, payload, queue);
            }
            let full = self.config.as_ref().and_then(|config| {
                config
                    .serving()
                    .find(|&member| member != self.node && store.is_full(member))
            });
            if let Some(member) = full {
                return Err(Error::new(
                    ErrorCode::NoSpace,
                    format!(
                        "storage-{member}, a member of chain {}, is full: remove files or add storage nodes",
                        self.chain
                    ),
                ));
            }
            if !store.has_room(payload.len() as u64) {
                return Err(Error::new(
                    ErrorCode::NoSpace,
                    format!(
                        "storage-{}, head of chain {}, is full: remove files or add storage nodes",
                        self.node, self.chain
                    ),
                ));
            }
        }
        self.check_bounds(request, payload, queue)
    }

    fn check_bounds(&self, request: &MutateRequest, payload: &Bytes, queue: &ChunkQueue) -> Result<(), Error> {
        if queue.entries.len() >= MAX_PENDING_PER_CHUNK
            || self.pending_count >= MAX_PENDING
            || self.pending_bytes + payload.len() > MAX_PENDING_BYTES
        {
            return Err(Error::new(
                ErrorCode::Overloaded,
                format!(
                    "chain {} has {} mutations ({} bytes) in flight, {} of them on chunk {}: try again",
                    self.chain,
                    self.pending_count,
                    self.pending_bytes,
                    queue.entries.len(),
                    request.chunk
                ),
            ));
        }
        Ok(())
    }
}

/// Of a chunk whose inode was removed: its holes are nobody's data.
pub(super) fn gone(chunk: ChunkId) -> Error {
    Error::new(ErrorCode::StaleInode, format!("chunk {chunk}: the file is removed"))
}

/// What an evicted session is told.
pub(crate) fn session_expired(session: SessionId) -> Error {
    Error::new(
        ErrorCode::SessionExpired,
        format!(
            "session {session} has ended or was not renewed in time, or this node has not heard of it: mount again"
        ),
    )
}

/// Whether the mutation is well-formed and its payload of the length that it claims.
pub(super) fn check_shape(mutation: &Mutation, payload: &Bytes) -> Result<(), Error> {
    let bad = |why: String| Err(Error::new(ErrorCode::BadMessage, why));
    match mutation {
        Mutation::Write {
            first,
            blocks,
            last_length_bytes,
            conditions,
        } => {
            if *blocks == 0 || u64::from(first.0) + u64::from(*blocks) > MAX_BLOCKS {
                return bad(format!("a write of {blocks} blocks from {first} is outside a chunk"));
            }
            if *last_length_bytes == 0 || *last_length_bytes as usize > BLOCK_SIZE_BYTES {
                return bad(format!("a last block of {last_length_bytes} bytes"));
            }
            let size = *blocks as usize * SEAL_SIZE_BYTES
                + (*blocks as usize - 1) * BLOCK_SIZE_BYTES
                + *last_length_bytes as usize;
            if size != payload.len() || size > MAX_PAYLOAD_SIZE_BYTES {
                return bad(format!(
                    "a write of {blocks} blocks is {size} bytes, its payload {}",
                    payload.len()
                ));
            }
            if conditions.len() > *blocks as usize {
                return bad(format!("{} conditions on {blocks} blocks", conditions.len()));
            }
            Ok(())
        }
        Mutation::Truncate { .. } | Mutation::Remove if !payload.is_empty() => {
            bad(format!("a payload of {} bytes where none belongs", payload.len()))
        }
        Mutation::Truncate { .. } | Mutation::Remove => Ok(()),
    }
}

/// Whether a forwarded pair of versions can come from a head at all.
pub(super) fn check_versions(before: ChunkVersion, version: ChunkVersion) -> Result<(), Error> {
    if version > before && version.counter == before.counter.wrapping_add(1) {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::BadMessage,
        format!("version {version} does not follow {before}"),
    ))
}
