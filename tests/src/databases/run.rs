//! Rounds of one run: clients commit, all servers lose their power, database and mount are killed, everything comes back, and what was
//! acknowledged is looked for.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::engine::{Client, Engine, Place};
use super::judge::{Session, judge};
use super::kind::Kind;
use super::report::{Report, Row};
use super::round::{Event, Round};
use crate::faults::draw::Draw;
use crate::host_cluster::HostCluster;
use crate::interrupt::is_interrupted;

/// Of each database, at the same time.
const CLIENTS: u32 = 3;

/// Generous: what is tried here is what is there afterwards, not how soon.
const HEALED_WITHIN: Duration = Duration::from_mins(5);

/// Names the files and directories of a run on the mount.
const DIRECTORY: &str = "databases";

/// Who runs beside whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Each alone: nobody else's fsync makes durable what its own did not.
    OneAfterTheOther,
    AtOnce,
}

#[derive(Clone, Debug)]
pub struct Options {
    pub kinds: Vec<Kind>,
    pub order: Order,
    pub rounds: u64,
    pub seed: u64,
    /// Where logs of a failed run go.
    pub keep: PathBuf,
}

/// A log of a database, appended to.
pub(super) fn log_file(place: &Place, name: &str) -> Result<File, String> {
    let path = place.local.join(format!("{name}.log"));
    let opened = File::options().create(true).append(true).open(&path);
    opened.map_err(|e| format!("{}: {e}", path.display()))
}

/// One database, its clients, and what they were told.
#[derive(Debug)]
struct Subject {
    kind: Kind,
    engine: Box<dyn Engine>,
    sessions: Vec<Arc<Mutex<Session>>>,
    threads: Vec<JoinHandle<()>>,
    row: Row,
}

/// Whatever is wrong with one database ends its part, not the run.
impl Subject {
    fn is_sound(&self) -> bool {
        self.row.wrong.is_empty()
    }

    fn attempt<T>(
        &mut self,
        what: &str,
        act: impl FnOnce(&mut (dyn Engine + 'static)) -> Result<T, String>,
    ) -> Option<T> {
        match act(self.engine.as_mut()) {
            Ok(value) => Some(value),
            Err(said) => {
                self.row.wrong.push(format!("{what}: {said}"));
                None
            }
        }
    }

    fn work(&mut self, stop: &Arc<AtomicBool>) {
        for number in 0..CLIENTS {
            let Some(client) = self.attempt("connect", |engine| engine.connect(number)) else {
                return;
            };
            let session = Arc::clone(&self.sessions[number as usize]);
            let stop = Arc::clone(stop);
            self.threads
                .push(thread::spawn(move || commit(client, &session, &stop)));
        }
    }

    /// After [`Engine::kill`] and the end of its mount.
    fn join(&mut self) {
        let _ = self.attempt("kill", Engine::reap);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                self.row.wrong.push("a client's thread died".to_owned());
            }
        }
    }

    fn count_interrupted(&mut self) {
        let ended = self.threads.iter().filter(|thread| thread.is_finished()).count();
        self.row.interrupted += ended as u64;
    }

    fn recover(&mut self) {
        let began = Instant::now();
        if self.attempt("recovery", Engine::start).is_some() {
            self.row.recoveries.push(began.elapsed());
        }
    }

    fn check(&mut self, when: &str) {
        for number in 0..CLIENTS {
            let Some(found) = self.attempt(when, |engine| engine.read(number)) else {
                return;
            };
            let mut session = self.sessions[number as usize]
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let verdict = judge(number, *session, &found);
            session.tried = verdict.last;
            self.row.lost += verdict.lost;
            let wrong = verdict.wrong.into_iter().map(|wrong| format!("{when}: {wrong}"));
            self.row.wrong.extend(wrong);
        }
        let _ = self.attempt(when, Engine::verify);
        self.row.checks += 1;
    }

    fn acknowledged(&self) -> u64 {
        let of = |session: &Arc<Mutex<Session>>| session.lock().unwrap_or_else(PoisonError::into_inner).acknowledged;
        self.sessions.iter().map(of).sum()
    }
}

/// Transaction after transaction; what was acknowledged is noted here, in a process that keeps its power.
fn commit(mut client: Box<dyn Client>, session: &Mutex<Session>, stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        let number = {
            let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
            session.tried += 1;
            session.tried
        };
        if client.commit(number).is_err() {
            return;
        }
        session.lock().unwrap_or_else(PoisonError::into_inner).acknowledged = number;
    }
}

/// Rounds until there were enough, or nothing is left to try.
#[must_use]
pub fn run(options: &Options) -> Report {
    let mut cluster = HostCluster::up(1, true);
    let mut report = Report::default();
    let groups: Vec<&[Kind]> = match options.order {
        Order::OneAfterTheOther => options.kinds.chunks(1).collect(),
        Order::AtOnce => vec![&options.kinds],
    };
    let mut draw = Draw::new(options.seed);
    for group in groups {
        if report.failures.is_empty() {
            run_group(&mut cluster, group, options.rounds, &mut draw, &mut report);
        }
    }
    let verified = cluster.admin(&["chain", "verify", "--deep"]);
    if !verified.ok() {
        report
            .failures
            .push(format!("replicas differ:\n{}{}", verified.stdout, verified.stderr));
    }
    if !report.passed() {
        keep(&cluster, &options.keep);
        report.kept = Some(options.keep.clone());
    }
    report
}

/// Some databases from their making to their end.
fn run_group(cluster: &mut HostCluster, kinds: &[Kind], rounds: u64, draw: &mut Draw, report: &mut Report) {
    // Gone before the cluster is: their processes have files of its mount open.
    let mut subjects = match prepare(cluster, kinds) {
        Ok(subjects) => subjects,
        Err(why) => return report.failures.push(why),
    };
    for round in 1..=rounds {
        if !subjects.iter().any(Subject::is_sound) {
            break;
        }
        if is_interrupted() {
            report.failures.push("interrupted".to_owned());
            break;
        }
        if let Err(why) = play(cluster, &mut subjects, draw, round) {
            report.failures.push(format!("round {round}: {why}"));
            break;
        }
    }
    for mut subject in subjects {
        if subject.is_sound() {
            let _ = subject.attempt("at rest", Engine::verify_at_rest);
        }
        subject.row.acknowledged = subject.acknowledged();
        subject.engine.kill();
        report.rows.insert(subject.kind, std::mem::take(&mut subject.row));
    }
}

fn keep(cluster: &HostCluster, to: &Path) {
    cluster.keep_logs(to);
    let from = cluster.scratch().join(DIRECTORY);
    for log in fs::read_dir(from).into_iter().flatten().flatten() {
        let name = log.file_name().display().to_string();
        for file in fs::read_dir(log.path()).into_iter().flatten().flatten() {
            let path = file.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                let file = file.file_name().display().to_string();
                let _ = fs::copy(&path, to.join(format!("{name}-{file}")));
            }
        }
    }
}

fn prepare(cluster: &HostCluster, kinds: &[Kind]) -> Result<Vec<Subject>, String> {
    // A database that refuses to be root has to get through.
    open_to_all(cluster.scratch())?;
    let mount = cluster.mount_points().remove(0);
    let mut subjects = Vec::new();
    for kind in kinds {
        let place = Place {
            data: mount.join(kind.name()),
            local: cluster.scratch().join(DIRECTORY).join(kind.name()),
        };
        for directory in [&place.data, &place.local] {
            fs::create_dir_all(directory).map_err(|e| format!("{}: {e}", directory.display()))?;
        }
        let mut subject = Subject {
            kind: *kind,
            engine: kind.engine(place)?,
            sessions: (0..CLIENTS).map(|_| Arc::default()).collect(),
            threads: Vec::new(),
            row: Row::default(),
        };
        if subject.attempt("create", Engine::create).is_some() {
            say(&format!("{}: made", kind.name()));
        }
        subjects.push(subject);
    }
    Ok(subjects)
}

fn open_to_all(directory: &Path) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    let permissions = fs::Permissions::from_mode(0o711);
    fs::set_permissions(directory, permissions).map_err(|e| format!("{}: {e}", directory.display()))
}

/// Clients commit; something happens; what was acknowledged is there.
fn play(cluster: &mut HostCluster, subjects: &mut [Subject], draw: &mut Draw, number: u64) -> Result<(), String> {
    let stop = Arc::new(AtomicBool::new(false));
    each_sound(subjects, |subject| subject.work(&stop));
    thread::sleep(Duration::from_millis(draw.between(2000, 9000)));
    let round = Round::of(number);
    for event in round.events() {
        match event {
            Event::PowerCutOnly => {
                cut_power(cluster, subjects)?;
                thread::sleep(Duration::from_millis(draw.between(500, 5000)));
            }
            Event::PowerCut | Event::MountKilled => {
                strike(cluster, subjects, &stop, *event)?;
                each_sound(subjects, Subject::recover);
                thread::sleep(Duration::from_millis(draw.between(0, 1000)));
            }
        }
    }
    each_sound(subjects, |subject| subject.check(&format!("round {number}, {round:?}")));
    let told: Vec<String> = subjects
        .iter()
        .map(|subject| format!("{} {}", subject.kind.name(), subject.acknowledged()))
        .collect();
    say(&format!("round {number}, {round:?}: acknowledged: {}", told.join(", ")));
    Ok(())
}

fn each_sound(subjects: &mut [Subject], act: impl FnMut(&mut Subject)) {
    subjects.iter_mut().filter(|subject| subject.is_sound()).for_each(act);
}

/// Of all servers at once, which come back; whoever has the mount open waits.
fn cut_power(cluster: &mut HostCluster, subjects: &mut [Subject]) -> Result<(), String> {
    let all: Vec<usize> = (0..cluster.servers.len()).collect();
    cluster.cut_power(&all);
    each_sound(subjects, |subject| subject.row.cuts += 1);
    start_all(cluster)
}

fn start_all(cluster: &mut HostCluster) -> Result<(), String> {
    (0..cluster.servers.len()).for_each(|index| cluster.start(index));
    cluster.wait_healthy(HEALED_WITHIN).map(drop)
}

/// Lets it happen, and has everything back but the databases.
fn strike(cluster: &mut HostCluster, subjects: &mut [Subject], stop: &AtomicBool, event: Event) -> Result<(), String> {
    each_sound(subjects, Subject::count_interrupted);
    let all: Vec<usize> = (0..cluster.servers.len()).collect();
    if event == Event::PowerCut {
        cluster.cut_power(&all);
    }
    stop.store(true, Ordering::SeqCst);
    for subject in &mut *subjects {
        subject.engine.kill();
    }
    cluster.kill_mount(0);
    subjects.iter_mut().for_each(Subject::join);
    if event == Event::PowerCut {
        each_sound(subjects, |subject| subject.row.cuts += 1);
        start_all(cluster)?;
    }
    cluster.mount_again(0);
    Ok(())
}

fn say(line: &str) {
    #[expect(clippy::print_stderr, reason = "a long run says where it is")]
    {
        eprintln!("{line}");
    }
}
