//! A program against mounts, judged by the model.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use dfs_client::{Client, ClientOptions, OpenMode};
use dfs_common::config::{ClusterConfig, MetaServer};
use dfs_common::wire::namespace::{Attributes, Caller, RenameMode, SetAttributes};
use dfs_common::{Error, ErrorCode, FileHandleId, InodeId, NodeName, Role, StorageId, ValidName};
use dfs_crypto::certificate::{CertificateAuthority, Credentials};
use dfs_crypto::key::RootKey;
use tokio::time::Instant;

use super::cluster::{CLUSTER, Cluster, Death, NODES, Servers};
use super::model::{File, FileId, Moment, MountId, Reader, pattern};
use super::program::{How, Nodes, Program, Step};
use super::wire::{Cable, End, Wire};

const ROOT: Caller = Caller { uid: 0, gid: 0 };

/// One read in order.
const STRIDE: u32 = 128 << 10;

/// Longest that a program may take on its own clock: more is a hang.
const LIMIT: Duration = Duration::from_hours(1);

/// A mount that the group did not hear for this long may have lost what it held.
const HOLDS_LOST_MS: u32 = 700;

/// One that cannot speak for this long may be taken for dead by who waits for what it wrote: two seconds after it sent that.
const STALL_MS: u32 = 500;

/// One that cannot reach somebody for this long may have given up a call.
const DEADLINE_MS: u32 = 20_000;

/// What a mount shows of what it holds it has told the group after this: some 5 ms, and a lost answer or two.
const UNTOLD_MS: u64 = 1_000;

/// A mount that has no room for what it might have to send again. Random programs do without it.
pub const FORGETFUL: u8 = 3;

pub type Judged = Result<(), String>;

struct Mounted {
    client: Client,
    wire: Arc<Wire>,
    id: MountId,
    handles: Vec<Open>,
    /// Whatever it says, there was a reason: the group did not hear it for long.
    excused: bool,
    /// A handle was told of a loss since the last `sync`, which tells of it as well.
    lost_since_sync: bool,
}

struct Open {
    handle: FileHandleId,
    file: FileId,
    position: u64,
    /// Another handle was told of an error, so this one will be.
    may_fail: bool,
    writes: bool,
}

struct Known {
    inode: InodeId,
    model: File,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Nothing,
    File(FileId),
    /// A change of it was not answered.
    Unknown,
}

/// A name that a mount was told it had made.
struct Made {
    directory: u8,
    name: u8,
    mount: MountId,
    inode: InodeId,
    synced: bool,
}

struct World {
    clock: Moment,
    /// When each moment was.
    moments: Vec<(u64, Moment)>,
    lives: BTreeMap<u8, MountId>,
    mounts: BTreeMap<u8, Mounted>,
    files: Vec<Known>,
    names: BTreeMap<u8, Name>,
    directories: BTreeMap<u8, InodeId>,
    made: Vec<Made>,
    /// Names that somebody was told they had made, whatever became of them.
    ever_made: BTreeSet<(u8, u8)>,
    /// Until then somebody cannot speak.
    cut_until: Instant,
}

impl World {
    fn tick(&mut self) -> Moment {
        self.clock += 1;
        self.clock
    }
}

pub struct Run {
    cluster: Arc<Cluster>,
    world: RefCell<World>,
    seed: u64,
}

/// A handle to work with, and whose it is.
#[derive(Clone)]
struct Grip {
    client: Client,
    mount: MountId,
    m: u8,
    handle: FileHandleId,
    file: FileId,
    inode: InodeId,
}

/// What a mount may not do, and where it did it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    pub at: String,
    pub what: String,
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.at, self.what)
    }
}

impl Wrong {
    /// The same for all that go wrong in the same way: no numbers, and little text.
    pub fn kind(&self) -> String {
        let text = self.what.split(" inode ").collect::<Vec<_>>().join(" inode");
        let mut kind: String = text.chars().filter(|c| !c.is_ascii_digit()).take(70).collect();
        if let Some(code) = text
            .rsplit_once('(')
            .filter(|(_, code)| text.ends_with(')') && code.len() < 30)
        {
            kind.push_str(" .. (");
            kind.push_str(code.1);
        }
        kind
    }
}

pub struct Report {
    pub verdict: Result<(), Wrong>,
    pub log: Vec<String>,
    pub lost: u64,
}

/// Runs a program on a runtime of its own.
pub fn run(program: &Program, servers: Servers, keeps_log: bool) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let cluster = Cluster::start(program.seed, servers, keeps_log);
        let run = Run {
            cluster: Arc::clone(&cluster),
            world: RefCell::new(World {
                clock: 0,
                moments: Vec::new(),
                lives: BTreeMap::new(),
                mounts: BTreeMap::new(),
                files: Vec::new(),
                names: BTreeMap::new(),
                directories: BTreeMap::new(),
                made: Vec::new(),
                ever_made: BTreeSet::new(),
                cut_until: Instant::now(),
            }),
            seed: program.seed,
        };
        let verdict = match tokio::time::timeout(LIMIT, run.all(program)).await {
            Ok(verdict) => verdict,
            Err(_) => Err(Wrong {
                at: "somewhere".to_owned(),
                what: "it hangs".to_owned(),
            }),
        };
        if let Err(error) = &verdict {
            cluster.log(|| format!("WRONG: {error}"));
        }
        let mut inner = cluster.inner();
        Report {
            verdict,
            log: inner.log.take().unwrap_or_default(),
            lost: inner.lost,
        }
    })
}

fn credentials() -> Credentials {
    static ONCE: OnceLock<Credentials> = OnceLock::new();
    ONCE.get_or_init(|| {
        let authority = CertificateAuthority::generate(CLUSTER).unwrap();
        authority.issue(NodeName::new(Role::Client, 1)).unwrap()
    })
    .clone()
}

fn options(m: u8) -> ClientOptions {
    let config = ClusterConfig {
        cluster: CLUSTER.to_string(),
        credentials: "unused".into(),
        node: None,
        meta: vec![MetaServer {
            id: 1,
            address: ([127, 0, 0, 1], 1).into(),
        }],
    };
    let root = RootKey::from_bytes([3; 32]);
    let mut options = ClientOptions::new(config, credentials(), root, format!("mount-{m}"));
    if m == FORGETFUL {
        options.kept_bytes = 0;
    }
    options
}

fn file_name(f: u8) -> ValidName {
    ValidName::new(format!("f{f}")).unwrap()
}

fn text(error: &Error) -> String {
    format!("{error}")
}

impl Run {
    async fn all(&self, program: &Program) -> Result<(), Wrong> {
        for (number, step) in program.steps.iter().enumerate() {
            self.cluster.log(|| format!("{number}: {step:?}"));
            let at = || format!("step {number}, {step:?}");
            self.step(step).await.map_err(|what| Wrong { at: at(), what })?;
            self.note_losses();
        }
        let at = || "at the end".to_owned();
        self.finish().await.map_err(|what| Wrong { at: at(), what })
    }

    async fn mount(&self, m: u8) -> Result<(), String> {
        if self.world.borrow().mounts.contains_key(&m) {
            return Ok(());
        }
        let id = {
            let mut world = self.world.borrow_mut();
            // A mount's number is that of its slot, and of later lives greater by four each.
            let id = world.lives.entry(m).or_insert(usize::from(m));
            *id += 4;
            *id - 4
        };
        let wire = Wire::new(&self.cluster, self.seed ^ (id as u64 + 1).wrapping_mul(0x9e37_79b9));
        let client = Client::connect_over(options(m), Arc::new(End(Arc::clone(&wire)))).await;
        let client = client.map_err(|error| format!("mount {m} cannot start: {error}"))?;
        let mounted = Mounted {
            client,
            wire,
            id,
            handles: Vec::new(),
            excused: false,
            lost_since_sync: false,
        };
        self.world.borrow_mut().mounts.insert(m, mounted);
        Ok(())
    }

    async fn client(&self, m: u8) -> Result<(Client, MountId), String> {
        self.mount(m).await?;
        let world = self.world.borrow();
        let mounted = &world.mounts[&m];
        Ok((mounted.client.clone(), mounted.id))
    }

    fn grip(&self, m: u8, h: u8) -> Option<Grip> {
        let world = self.world.borrow();
        let mounted = world.mounts.get(&m)?;
        let count = mounted.handles.len();
        let open = mounted.handles.get(usize::from(h).checked_rem(count)?)?;
        Some(Grip {
            client: mounted.client.clone(),
            mount: mounted.id,
            m,
            handle: open.handle,
            file: open.file,
            inode: world.files[open.file].inode,
        })
    }

    fn writable(&self, m: u8, h: u8) -> Option<Grip> {
        let grip = self.grip(m, h)?;
        let world = self.world.borrow();
        let open = world.mounts[&m]
            .handles
            .iter()
            .find(|open| open.handle == grip.handle)?;
        open.writes.then_some(grip)
    }

    fn tick(&self) -> Moment {
        let now_ms = self.cluster.now_ms();
        let mut world = self.world.borrow_mut();
        let moment = world.tick();
        world.moments.push((now_ms, moment));
        moment
    }

    /// The last moment that is older than this.
    fn moment_before(&self, age_ms: u64) -> Moment {
        let now_ms = self.cluster.now_ms();
        let world = self.world.borrow();
        let old = world.moments.iter().rev().find(|(ms, _)| ms + age_ms <= now_ms);
        old.map_or(0, |(_, moment)| *moment)
    }

    fn model<T>(&self, file: FileId, with: impl FnOnce(&mut File) -> T) -> T {
        with(&mut self.world.borrow_mut().files[file].model)
    }

    fn is_excused(&self, m: u8) -> bool {
        self.world.borrow().mounts.get(&m).is_none_or(|mounted| mounted.excused)
    }

    /// An error has to have a cause among the faults.
    fn judge(&self, m: u8, what: &str, error: &Error) -> Judged {
        self.cluster.log(|| format!("   {what} of mount {m} fails: {error}"));
        if self.is_excused(m) {
            return Ok(());
        }
        Err(format!("{what} fails without a cause: {}", text(error)))
    }

    /// The same for one that may tell of a late write.
    fn judge_late(&self, grip: &Grip, what: &str, error: &Error) -> Judged {
        let excuse = self.model(grip.file, |file| file.excuse(grip.mount));
        let mut world = self.world.borrow_mut();
        let Some(mounted) = world.mounts.get_mut(&grip.m) else {
            return Ok(());
        };
        let mut told_before = false;
        for open in mounted.handles.iter_mut().filter(|open| open.file == grip.file) {
            if open.handle == grip.handle {
                told_before = std::mem::take(&mut open.may_fail);
            } else {
                open.may_fail = true;
            }
        }
        mounted.lost_since_sync = true;
        drop(world);
        if let Some(why) = excuse {
            self.cluster
                .log(|| format!("   {what} of mount {} fails: {error} ({why})", grip.m));
            return Ok(());
        }
        if told_before {
            return Ok(());
        }
        self.judge(grip.m, what, error)
    }

    /// A loss may wait for a later call, and hold that up for seconds.
    fn note_losses(&self) {
        let told_to = self.moment_before(UNTOLD_MS);
        let mut world = self.world.borrow_mut();
        let world = &mut *world;
        for mounted in world.mounts.values().filter(|mounted| mounted.wire.is_losing()) {
            for known in &mut world.files {
                known.model.mount_stalled(mounted.id, told_to);
            }
        }
    }

    async fn step(&self, step: &Step) -> Judged {
        match *step {
            Step::Create { m, f } => self.create(m, f).await,
            Step::Open { m, f, how } => self.open(m, f, how).await,
            Step::Write { m, h, at, len } => match self.writable(m, h) {
                Some(grip) => self.write(&grip, at, len).await,
                None => Ok(()),
            },
            Step::Append { m, h, len } => match self.writable(m, h) {
                Some(grip) => self.append(&grip, len).await,
                None => Ok(()),
            },
            Step::SetLength { m, h, len } => match self.writable(m, h) {
                Some(grip) => self.set_length(&grip, len).await,
                None => Ok(()),
            },
            Step::Read { m, h, at, len } => match self.grip(m, h) {
                Some(grip) => self.read(&grip, at, len).await.map(drop),
                None => Ok(()),
            },
            Step::ReadOn { m, h, times } => match self.grip(m, h) {
                Some(grip) => self.read_on(&grip, times).await,
                None => Ok(()),
            },
            Step::Fsync { m, h, data_only } => match self.grip(m, h) {
                Some(grip) => self.fsync(&grip, data_only).await,
                None => Ok(()),
            },
            Step::Flush { m, h } => match self.grip(m, h) {
                Some(grip) => self.flush(&grip).await,
                None => Ok(()),
            },
            Step::Close { m, h } => match self.grip(m, h) {
                Some(grip) => self.close(&grip).await,
                None => Ok(()),
            },
            Step::Stat { m, f } => self.stat(m, f).await,
            Step::Rename { m, f, to } => self.rename(m, f, to).await,
            Step::Unlink { m, f } => self.unlink(m, f).await,
            Step::Together(ref one, ref other) => {
                let (one, other) = tokio::join!(Box::pin(self.step(one)), Box::pin(self.step(other)));
                one.and(other)
            }
            Step::SyncAll { m } => self.sync_all(m).await,
            Step::MakeDirectory { m, d } => self.make_directory(m, d).await,
            Step::Make { m, d, n } => self.make(m, d, n).await,
            Step::SyncDirectory { m, d } => self.sync_directory(m, d).await,
            ref fault => {
                self.fault(fault).await;
                Ok(())
            }
        }
    }

    async fn fault(&self, fault: &Step) {
        match *fault {
            Step::Wait { ms } => tokio::time::sleep(Duration::from_millis(u64::from(ms))).await,
            Step::Power { nodes, back_ms } => self.nodes_die(nodes, Death::Power, back_ms).await,
            Step::Crash { nodes, back_ms } => self.nodes_die(nodes, Death::Process, back_ms).await,
            Step::Lose { m, cable, loss, count } => {
                let told_to = self.moment_before(UNTOLD_MS);
                let mut world = self.world.borrow_mut();
                let world = &mut *world;
                if let Some(mounted) = world.mounts.get(&m) {
                    mounted.wire.lose(cable, loss, u32::from(count));
                    // Who waits for an answer that does not come waits for seconds.
                    for known in &mut world.files {
                        known.model.mount_stalled(mounted.id, told_to);
                    }
                }
            }
            Step::Cut { m, cable, ms } => self.cut(m, cable, ms),
            Step::Kill { m } => self.kill(m).await,
            ref other => panic!("{other:?} is no fault"),
        }
    }

    async fn nodes_die(&self, nodes: Nodes, death: Death, back_ms: u32) {
        self.whole().await;
        let all: Vec<StorageId> = (1..=NODES).map(StorageId).collect();
        let (nodes, together) = match nodes {
            Nodes::All => (all, true),
            Nodes::Chain(number) => {
                let table = self.cluster.state.routing();
                let chains: Vec<_> = table.chains.keys().copied().collect();
                (self.cluster.nodes_of(chains[usize::from(number) % chains.len()]), true)
            }
            Nodes::One(number) => (vec![all[usize::from(number) % all.len()]], false),
        };
        let mut world = self.world.borrow_mut();
        for known in world.files.iter_mut().filter(|_| together) {
            match death {
                Death::Power => known.model.power_lost(),
                Death::Process => known.model.chains_revived(),
            }
        }
        drop(world);
        self.cluster.kill_nodes(&nodes, death, u64::from(back_ms));
    }

    fn cut(&self, m: u8, cable: Cable, ms: u32) {
        let told_to = self.moment_before(UNTOLD_MS);
        let mut world = self.world.borrow_mut();
        let world = &mut *world;
        let Some(mounted) = world.mounts.get_mut(&m) else {
            return;
        };
        mounted.wire.cut(cable, u64::from(ms));
        world.cut_until = world
            .cut_until
            .max(Instant::now() + Duration::from_millis(u64::from(ms)));
        if ms >= DEADLINE_MS || (cable != Cable::Nodes && ms >= HOLDS_LOST_MS) {
            mounted.excused = true;
        }
        if ms >= STALL_MS {
            for known in &mut world.files {
                known.model.mount_stalled(mounted.id, told_to);
            }
        }
        if ms >= DEADLINE_MS {
            for known in &mut world.files {
                known.model.mount_failed(mounted.id);
            }
        }
    }

    async fn kill(&self, m: u8) {
        let Some(mounted) = self.world.borrow_mut().mounts.remove(&m) else {
            return;
        };
        let told_to = self.moment_before(UNTOLD_MS);
        mounted.wire.kill().await;
        let now = self.tick();
        let mut world = self.world.borrow_mut();
        for known in &mut world.files {
            let told = self.cluster.told_length(known.inode);
            known.model.mount_died(mounted.id, now, told_to, told);
        }
    }

    async fn whole(&self) {
        while !self.cluster.is_whole() {
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    async fn create(&self, m: u8, f: u8) -> Judged {
        let (client, mount) = self.client(m).await?;
        let began = self.tick();
        let made = client.create(ROOT, InodeId::ROOT, &file_name(f), 0o644, false).await;
        let (attributes, handle) = match made {
            Ok(made) => made,
            Err(error) => {
                self.world.borrow_mut().names.insert(f, Name::Unknown);
                return self.judge(m, "create", &error);
            }
        };
        let known = self.world.borrow().names.get(&f).copied().unwrap_or(Name::Nothing);
        let file = self.resolve(f, &attributes, known == Name::Nothing)?;
        self.opened(m, mount, (handle, file), began, false, How::Write)?;
        self.check_length(file, mount, began, &attributes)
    }

    /// The file that a name led to.
    fn resolve(&self, f: u8, attributes: &Attributes, may_be_new: bool) -> Result<FileId, String> {
        let mut world = self.world.borrow_mut();
        let known = world.names.get(&f).copied().unwrap_or(Name::Nothing);
        let found = world.files.iter().position(|file| file.inode == attributes.inode);
        let file = match (known, found) {
            (Name::File(file), Some(found)) if file == found => file,
            (Name::Unknown, Some(found)) => found,
            (Name::Nothing, None) if may_be_new => self.new_file(&mut world, attributes.inode),
            (Name::Unknown, None) => self.new_file(&mut world, attributes.inode),
            _ => {
                return Err(format!(
                    "f{f} leads to inode {}, which is {found:?}; it should be {known:?}",
                    attributes.inode
                ));
            }
        };
        world.names.insert(f, Name::File(file));
        Ok(file)
    }

    fn new_file(&self, world: &mut World, inode: InodeId) -> FileId {
        let file = world.files.len();
        self.cluster.log(|| format!("   file {file} is inode {inode}"));
        world.files.push(Known {
            inode,
            model: File::default(),
        });
        file
    }

    fn opened(
        &self,
        m: u8,
        mount: MountId,
        (handle, file): (FileHandleId, FileId),
        began: Moment,
        keep: bool,
        how: How,
    ) -> Judged {
        let mut world = self.world.borrow_mut();
        if let Some(mounted) = world.mounts.get_mut(&m) {
            mounted.handles.push(Open {
                handle,
                file,
                position: 0,
                may_fail: false,
                writes: how != How::Read,
            });
        }
        world.files[file].model.open(mount, began, keep)
    }

    fn check_length(&self, file: FileId, mount: MountId, began: Moment, attributes: &Attributes) -> Judged {
        let reader = Reader {
            mount,
            cached: false,
            fresh_at: began,
        };
        self.model(file, |file| file.check_length(reader, attributes.length_bytes))
    }

    async fn open(&self, m: u8, f: u8, how: How) -> Judged {
        let (client, mount) = self.client(m).await?;
        let began = self.tick();
        let Some((file, attributes)) = self.look_up(m, &client, f).await? else {
            return Ok(());
        };
        let mode = OpenMode {
            read: true,
            write: how != How::Read,
            truncate: how == How::Truncate,
            ..OpenMode::default()
        };
        let cut = (how == How::Truncate).then(|| self.model(file, |file| file.cut_begins(mount, began, 0)));
        let opened = client.open(attributes.inode, mode).await;
        let now = self.tick();
        match opened {
            Ok((attributes, handle, keep)) => {
                if let Some(cut) = cut {
                    self.model(file, |file| {
                        file.cut_ends(cut, now);
                        file.touched_by(mount);
                    });
                }
                self.opened(m, mount, (handle, file), began, keep, how)?;
                self.check_length(file, mount, began, &attributes)
            }
            Err(error) => {
                if let Some(cut) = cut {
                    self.model(file, |file| file.failed(cut));
                }
                self.judge(m, "open", &error)
            }
        }
    }

    /// `None`: there is no such name, rightly, or the mount cannot know.
    async fn look_up(&self, m: u8, client: &Client, f: u8) -> Result<Option<(FileId, Attributes)>, String> {
        let found = client.lookup(InodeId::ROOT, &file_name(f)).await;
        let known = self.world.borrow().names.get(&f).copied().unwrap_or(Name::Nothing);
        match found {
            Ok(attributes) => {
                let file = self.resolve(f, &attributes, false)?;
                Ok(Some((file, attributes)))
            }
            Err(error) if error.code == ErrorCode::NotFound && !matches!(known, Name::File(_)) => {
                self.world.borrow_mut().names.insert(f, Name::Nothing);
                Ok(None)
            }
            Err(error) => self.judge(m, "lookup", &error).map(|()| None),
        }
    }

    async fn write(&self, grip: &Grip, at: u64, len: u32) -> Judged {
        let now = self.tick();
        let excused = self.is_excused(grip.m);
        let number = self.model(grip.file, |file| {
            let number = file.write(grip.mount, now, at, u64::from(len));
            file.touched_by(grip.mount);
            if excused {
                file.failed(number);
            }
            number
        });
        let data: Vec<u8> = (at..at + u64::from(len)).map(|at| pattern(number, at)).collect();
        self.cluster.log(|| format!("   it is #{number}"));
        let written = grip.client.write(grip.handle, at, Bytes::from(data)).await;
        let now = self.tick();
        match written {
            Ok(written) if written == len => {
                self.model(grip.file, |file| file.write_ends(number, now));
                Ok(())
            }
            Ok(written) => Err(format!("{written} of {len} bytes were written")),
            Err(error) => {
                self.model(grip.file, |file| file.failed(number));
                self.judge_late(grip, "write", &error)
            }
        }
    }

    /// Where the end is known: a mount takes it from what it knows, which is fresh after a stat.
    async fn append(&self, grip: &Grip, len: u32) -> Judged {
        let began = self.tick();
        let attributes = match grip.client.attributes(grip.inode).await {
            Ok(attributes) => attributes,
            Err(error) => return self.judge(grip.m, "stat", &error),
        };
        self.check_length(grip.file, grip.mount, began, &attributes)?;
        let now = self.tick();
        let reader = Reader {
            cached: false,
            mount: grip.mount,
            fresh_at: now,
        };
        let (low, high) = self.model(grip.file, |file| file.length(reader));
        if low != high {
            return Ok(());
        }
        self.write(grip, low, len).await
    }

    async fn set_length(&self, grip: &Grip, length: u64) -> Judged {
        let began = self.tick();
        let cut = self.model(grip.file, |file| {
            file.touched_by(grip.mount);
            file.cut_begins(grip.mount, began, length)
        });
        let changed = grip
            .client
            .set_attributes(
                ROOT,
                grip.inode,
                SetAttributes::default(),
                Some(length),
                Some(grip.handle),
            )
            .await;
        let now = self.tick();
        match changed {
            Ok(attributes) => {
                // What it holds it tells later, if it can.
                let untold = self.is_excused(grip.m);
                self.model(grip.file, |file| {
                    file.cut_ends(cut, now);
                    file.events[cut].shaky |= untold;
                });
                self.check_length(grip.file, grip.mount, began, &attributes)
            }
            Err(error) => {
                self.model(grip.file, |file| file.failed(cut));
                self.judge_late(grip, "truncate", &error)
            }
        }
    }

    /// How many bytes it gave.
    async fn read(&self, grip: &Grip, at: u64, len: u32) -> Result<usize, String> {
        let found = grip.client.read(grip.handle, at, len).await;
        let now = self.tick();
        match found {
            Ok(bytes) => {
                self.model(grip.file, |file| file.read(grip.mount, now, at, u64::from(len), &bytes))
                    .map_err(|error| format!("mount {} reads {at}+{len} of file {}: {error}", grip.m, grip.file))?;
                Ok(bytes.len())
            }
            Err(error) => self.judge(grip.m, "read", &error).map(|()| 0),
        }
    }

    async fn read_on(&self, grip: &Grip, times: u8) -> Judged {
        for _ in 0..times {
            let at = self.open_of(grip, |open| open.position).unwrap_or(0);
            let got = self.read(grip, at, STRIDE).await?;
            if self.open_of(grip, |open| open.position += got as u64).is_none() || got < STRIDE as usize {
                break;
            }
        }
        Ok(())
    }

    fn open_of<T>(&self, grip: &Grip, with: impl FnOnce(&mut Open) -> T) -> Option<T> {
        let mut world = self.world.borrow_mut();
        let mounted = world.mounts.get_mut(&grip.m)?;
        let open = mounted.handles.iter_mut().find(|open| open.handle == grip.handle)?;
        Some(with(open))
    }

    async fn fsync(&self, grip: &Grip, data_only: bool) -> Judged {
        let began = self.tick();
        let synced = grip.client.fsync(grip.handle, data_only).await;
        let now = self.tick();
        let verdict = match &synced {
            Ok(()) => Ok(()),
            Err(error) => self.judge_late(grip, "fsync", error),
        };
        self.cluster
            .log(|| format!("   fsync: {}", synced.as_ref().err().map_or("0".to_owned(), text)));
        self.model(grip.file, |file| {
            file.fsynced(grip.mount, (began, now), data_only, synced.is_ok());
        });
        verdict
    }

    async fn sync_all(&self, m: u8) -> Judged {
        let Some(mounted) = self
            .world
            .borrow()
            .mounts
            .get(&m)
            .map(|mounted| (mounted.client.clone(), mounted.id))
        else {
            return Ok(());
        };
        let (client, mount) = mounted;
        let began = self.tick();
        let synced = client.sync_all().await;
        let now = self.tick();
        self.cluster
            .log(|| format!("   sync: {}", synced.as_ref().err().map_or("0".to_owned(), text)));
        let mut world = self.world.borrow_mut();
        let mut is_excused = world
            .mounts
            .get_mut(&m)
            .is_none_or(|mounted| std::mem::take(&mut mounted.lost_since_sync));
        for known in &mut world.files {
            is_excused |= known.model.excuse(mount).is_some();
            known.model.all_synced(mount, (began, now), synced.is_ok());
        }
        drop(world);
        match synced {
            Err(error) if !is_excused => self.judge(m, "sync", &error),
            _ => Ok(()),
        }
    }

    async fn flush(&self, grip: &Grip) -> Judged {
        let began = self.tick();
        let flushed = grip.client.flush(grip.handle).await;
        let now = self.tick();
        let verdict = match &flushed {
            Ok(()) => Ok(()),
            Err(error) => self.judge_late(grip, "close", error),
        };
        self.model(grip.file, |file| {
            file.flushed(grip.mount, (began, now), flushed.is_ok());
        });
        verdict
    }

    async fn close(&self, grip: &Grip) -> Judged {
        let verdict = self.flush(grip).await;
        let released = grip.client.release(grip.handle);
        let mut world = self.world.borrow_mut();
        let world = &mut *world;
        let Some(mounted) = world.mounts.get_mut(&grip.m) else {
            return verdict;
        };
        mounted.handles.retain(|open| open.handle != grip.handle);
        if mounted.handles.iter().all(|open| open.file != grip.file) {
            world.files[grip.file].model.last_close(grip.mount);
        }
        released.map_err(|error| format!("release fails: {error}"))?;
        verdict
    }

    async fn stat(&self, m: u8, f: u8) -> Judged {
        let (client, mount) = self.client(m).await?;
        let began = self.tick();
        match self.look_up(m, &client, f).await? {
            Some((file, attributes)) => self.check_length(file, mount, began, &attributes),
            None => Ok(()),
        }
    }

    async fn rename(&self, m: u8, f: u8, to: u8) -> Judged {
        let (client, _) = self.client(m).await?;
        let renamed = client
            .rename(
                ROOT,
                InodeId::ROOT,
                &file_name(f),
                InodeId::ROOT,
                &file_name(to),
                RenameMode::Replace,
            )
            .await;
        let known = self.world.borrow().names.get(&f).copied().unwrap_or(Name::Nothing);
        let mut changes = vec![(f, Name::Unknown), (to, Name::Unknown)];
        let verdict = match renamed {
            Ok(()) if known == Name::Nothing => Err(format!("f{f} was renamed, and is not there")),
            Ok(()) if f == to => return Ok(()),
            Ok(()) => {
                changes = vec![(f, Name::Nothing), (to, known)];
                Ok(())
            }
            Err(error) if error.code == ErrorCode::NotFound && !matches!(known, Name::File(_)) => return Ok(()),
            Err(error) => self.judge(m, "rename", &error),
        };
        self.world.borrow_mut().names.extend(changes);
        verdict
    }

    async fn unlink(&self, m: u8, f: u8) -> Judged {
        let (client, _) = self.client(m).await?;
        let unlinked = client.unlink(ROOT, InodeId::ROOT, &file_name(f)).await;
        let known = self.world.borrow().names.get(&f).copied().unwrap_or(Name::Nothing);
        let (after, verdict) = match unlinked {
            Ok(()) if known == Name::Nothing => (known, Err(format!("f{f} was unlinked, and is not there"))),
            Ok(()) => (Name::Nothing, Ok(())),
            Err(error) if error.code == ErrorCode::NotFound && !matches!(known, Name::File(_)) => return Ok(()),
            Err(error) => (Name::Unknown, self.judge(m, "unlink", &error)),
        };
        self.world.borrow_mut().names.insert(f, after);
        verdict
    }

    async fn make_directory(&self, m: u8, d: u8) -> Judged {
        let (client, _) = self.client(m).await?;
        if self.world.borrow().directories.contains_key(&d) {
            return Ok(());
        }
        let name = ValidName::new(format!("d{d}")).unwrap();
        match client.mkdir(ROOT, InodeId::ROOT, &name, 0o755).await {
            Ok(attributes) => {
                self.world.borrow_mut().directories.insert(d, attributes.inode);
                Ok(())
            }
            Err(error) => self.judge(m, "mkdir", &error),
        }
    }

    async fn make(&self, m: u8, d: u8, n: u8) -> Judged {
        let (client, mount) = self.client(m).await?;
        let Some(parent) = self.world.borrow().directories.get(&d).copied() else {
            return Ok(());
        };
        match client.create(ROOT, parent, &file_name(n), 0o644, true).await {
            Ok((attributes, handle)) => {
                self.cluster
                    .log(|| format!("   mount {m} makes d{d}/f{n}: inode {}", attributes.inode));
                self.world.borrow_mut().ever_made.insert((d, n));
                self.world.borrow_mut().made.push(Made {
                    directory: d,
                    name: n,
                    mount,
                    inode: attributes.inode,
                    synced: false,
                });
                client
                    .release(handle)
                    .map_err(|error| format!("release fails: {error}"))
            }
            Err(error) if error.code == ErrorCode::Exists => {
                let world = self.world.borrow();
                if world.ever_made.contains(&(d, n)) || world.mounts[&m].excused {
                    return Ok(());
                }
                Err(format!("d{d}/f{n} is there, and nobody made it"))
            }
            Err(error) => self.judge(m, "create", &error),
        }
    }

    async fn sync_directory(&self, m: u8, d: u8) -> Judged {
        let (client, mount) = self.client(m).await?;
        let Some(inode) = self.world.borrow().directories.get(&d).copied() else {
            return Ok(());
        };
        match client.fsync_directory(&client.open_directory(inode)).await {
            Ok(()) => {
                self.cluster.log(|| format!("   fsync of d{d} by mount {m}: 0"));
                let mut world = self.world.borrow_mut();
                for made in world
                    .made
                    .iter_mut()
                    .filter(|made| (made.directory, made.mount) == (d, mount))
                {
                    made.synced = true;
                }
                Ok(())
            }
            Err(error) => {
                let mut world = self.world.borrow_mut();
                // What was told once is not told again.
                world
                    .made
                    .retain(|made| (made.directory, made.mount) != (d, mount) || made.synced);
                drop(world);
                self.judge(m, "fsync of a directory", &error)
            }
        }
    }

    /// Everything is well again; what does everybody see?
    async fn finish(&self) -> Judged {
        self.whole().await;
        let cut_until = self.world.borrow().cut_until;
        tokio::time::sleep_until(cut_until).await;
        let mounts: Vec<u8> = self.world.borrow().mounts.keys().copied().collect();
        for &m in &mounts {
            let count = self.world.borrow().mounts[&m].handles.len();
            for h in 0..count {
                if let Some(grip) = self.grip(m, h as u8) {
                    self.look_over(&grip).await?;
                }
            }
        }
        for m in mounts.into_iter().chain([super::program::MOUNTS]) {
            for f in 0..super::program::NAMES {
                let before = self
                    .world
                    .borrow()
                    .mounts
                    .get(&m)
                    .map_or(0, |mounted| mounted.handles.len());
                self.open(m, f, How::Read)
                    .await
                    .map_err(|error| format!("mount {m} opens f{f}: {error}"))?;
                let after = self
                    .world
                    .borrow()
                    .mounts
                    .get(&m)
                    .map_or(0, |mounted| mounted.handles.len());
                if after > before
                    && let Some(grip) = self.grip(m, before as u8)
                {
                    self.look_over(&grip).await?;
                }
            }
        }
        self.look_at_directories().await
    }

    async fn look_over(&self, grip: &Grip) -> Judged {
        let places = self.model(grip.file, |file| file.places());
        for (from, to) in places {
            let mut at = from;
            while at < to {
                let len = (to - at).min(1 << 20) as u32;
                if self.read(grip, at, len).await? < len as usize {
                    break;
                }
                at += u64::from(len);
            }
        }
        Ok(())
    }

    async fn look_at_directories(&self) -> Judged {
        let m = super::program::MOUNTS;
        let (client, _) = self.client(m).await?;
        let synced: Vec<_> = {
            let world = self.world.borrow();
            let synced = world.made.iter().filter(|made| made.synced);
            synced
                .map(|made| (made.directory, made.name, made.inode, made.mount))
                .collect()
        };
        for (d, n, inode, mount) in synced {
            let parent = self.world.borrow().directories[&d];
            let found = client.lookup(parent, &file_name(n)).await;
            if !matches!(&found, Ok(attributes) if attributes.inode == inode) {
                return Err(format!(
                    "mount {mount} made d{d}/f{n} as inode {inode} and its fsync of d{d} said 0; now it is {:?}",
                    found.map(|attributes| attributes.inode)
                ));
            }
        }
        Ok(())
    }
}
