//! Whether a process still lives, as its kernel says.
//!
//! QUIC hears nothing when a peer is killed: nobody is left to speak, and silence takes most of a second to mean anything. So
//! who serves also listens on TCP, at the port that it has for QUIC, and whoever needs it keeps an idle connection there. The
//! kernel closes that in the moment in which the process ends, whatever ended it.
//!
//! A connection also breaks for other reasons, so the address is asked once more: only when it refuses (nobody listens there
//! any more) or another process answers, is the first one dead. Silence, or a port that never answered, proves nothing. The
//! listener lives as long as its endpoint, so a refusal is the word of the kernel; only a firewall that *rejects* in its
//! place (instead of dropping) can imitate it. Ceph trusts the same sign (`osd_fast_fail_on_connection_refused`).
//!
//! The connection carries eight bytes, the number of the process, and nothing else; there is nothing to seal or to forge
//! that a dropped packet would not do as well.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dfs_common::Incarnation;
use rustix::net::sockopt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Idle connections that one process keeps; who comes later hears of its death by its silence.
const WATCHERS_MAX: usize = 1_024;

/// For the connection and its eight bytes.
const GREETING_TIMEOUT: Duration = Duration::from_secs(1);

/// Between attempts at a port that does not answer, or does not keep what it answered.
const RETRY: Duration = Duration::from_secs(1);

/// The same, the first time after a connection broke, and twice as long each time: a kernel that buries a process needs a
/// moment from one socket to the next.
const HURRY: Duration = Duration::from_millis(5);

/// As many pauses are waited for an answer. While a listener is closed its kernel may drop a connection's first packet, which is
/// sent again after a second only.
const PATIENCE: u32 = 10;

/// A connection that broke sooner than this is no sign that the next one will last.
const SHORT_LIVED: Duration = Duration::from_secs(1);

/// The kernel's probes: only so that connections do not outlive hosts for ever.
const KEEP_ALIVE_IDLE: Duration = Duration::from_secs(30);

/// Listens at the port that is taken for QUIC already; `None`, with a line in the log, when another program has it for TCP.
pub(crate) fn listen(address: SocketAddr) -> Option<Arc<TcpListener>> {
    let bound = std::net::TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    });
    match bound {
        Ok(listener) => Some(Arc::new(listener)),
        Err(error) => {
            tracing::warn!(%address, "port taken for TCP ({error}): others will notice the death of this process late");
            None
        }
    }
}

/// Lets others hold connections, until told to stop.
pub(crate) async fn attend(listener: Arc<TcpListener>, process: Incarnation, shutdown: CancellationToken) {
    let places = Arc::new(Semaphore::new(WATCHERS_MAX));
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely. The listener stays.
                tracing::debug!(%error, "nobody new can watch whether this process lives");
                sleep(RETRY).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            continue;
        };
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            let _place = place;
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = hold(stream, process) => {}
            }
        });
    }
}

async fn hold(mut stream: TcpStream, process: Incarnation) {
    keep_alive(&stream);
    let greeting = timeout(GREETING_TIMEOUT, stream.write_all(&process.0.to_le_bytes())).await;
    if matches!(greeting, Ok(Ok(()))) {
        // Whoever watches says nothing. A byte or an end: it has gone.
        let _ = stream.read(&mut [0; 1]).await;
    }
}

fn keep_alive(stream: &TcpStream) {
    let _ = sockopt::set_socket_keepalive(stream, true);
    let _ = sockopt::set_tcp_keepidle(stream, KEEP_ALIVE_IDLE);
}

/// What one attempt to hold a connection came to.
enum Held {
    /// Who answered, and for how long it lasted.
    Answered(Incarnation, Duration),
    Refused,
    Silent,
}

async fn hold_on(address: SocketAddr, expected: Option<Incarnation>, patience: Duration) -> Held {
    let mut stream = match timeout(patience, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => return Held::Refused,
        Ok(Err(_)) | Err(_) => return Held::Silent,
    };
    keep_alive(&stream);
    let mut greeting = [0; 8];
    match timeout(patience, stream.read_exact(&mut greeting)).await {
        Ok(Ok(_)) => {}
        Ok(Err(_)) | Err(_) => return Held::Silent,
    }
    let process = Incarnation(u64::from_le_bytes(greeting));
    if expected.is_some_and(|expected| expected != process) {
        return Held::Answered(process, Duration::ZERO);
    }
    let since = Instant::now();
    // Nothing is ever said: this is the end, in order or not.
    let _ = stream.read(&mut [0; 1]).await;
    Held::Answered(process, since.elapsed())
}

/// Whether the kernel at `address` says that nobody listens there.
pub(crate) async fn is_refused(address: SocketAddr) -> bool {
    let connecting = timeout(GREETING_TIMEOUT, TcpStream::connect(address)).await;
    matches!(connecting, Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused)
}

/// Returns when the process at `address` is dead for certain: `expected`, or else the one that answers first. May never return.
pub async fn death(address: SocketAddr, expected: Option<Incarnation>) {
    let mut expected = expected;
    let mut answered = false;
    let mut pause = RETRY;
    loop {
        match hold_on(address, expected, (PATIENCE * pause).min(GREETING_TIMEOUT)).await {
            Held::Answered(process, _) if expected.is_some_and(|expected| expected != process) => return,
            Held::Answered(process, lasted) => {
                expected = Some(process);
                if !answered || lasted >= SHORT_LIVED {
                    pause = HURRY;
                }
                answered = true;
                if lasted >= SHORT_LIVED {
                    continue;
                }
            }
            Held::Refused if answered => return,
            Held::Refused | Held::Silent => {}
        }
        sleep(pause).await;
        pause = (2 * pause).min(RETRY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Incarnation = Incarnation(11);

    async fn soon(watched: tokio::task::JoinHandle<()>) -> bool {
        timeout(Duration::from_millis(300), watched).await.is_ok()
    }

    /// A process that attends to a port, and what ends it.
    async fn process(
        address: SocketAddr,
        id: Incarnation,
    ) -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
        let listener = listen(address).unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(attend(listener, id, stop.clone()));
        tokio::task::yield_now().await;
        (address, stop, task)
    }

    fn local() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    #[tokio::test]
    async fn an_end_is_noticed_at_once() {
        let (address, stop, task) = process(local(), FIRST).await;
        let watched = tokio::spawn(death(address, None));
        let expecting = tokio::spawn(death(address, Some(FIRST)));
        sleep(Duration::from_millis(100)).await;
        assert!(!watched.is_finished() && !expecting.is_finished());
        stop.cancel();
        task.await.unwrap();
        assert!(soon(watched).await && soon(expecting).await);
    }

    #[tokio::test]
    async fn another_process_in_its_place_is_its_death() {
        let (address, stop, task) = process(local(), FIRST).await;
        let watched = tokio::spawn(death(address, None));
        sleep(Duration::from_millis(100)).await;
        stop.cancel();
        task.await.unwrap();
        let _second = process(address, Incarnation(12)).await;
        assert!(soon(watched).await);
        assert!(soon(tokio::spawn(death(address, Some(FIRST)))).await);
    }

    #[tokio::test]
    async fn a_port_that_never_answered_proves_nothing() {
        let unused = std::net::TcpListener::bind(local()).unwrap().local_addr().unwrap();
        assert!(!soon(tokio::spawn(death(unused, Some(FIRST)))).await);
        // One that accepts and says nothing, then is gone.
        let mute = std::net::TcpListener::bind(local()).unwrap();
        let address = mute.local_addr().unwrap();
        let watched = tokio::spawn(death(address, None));
        sleep(Duration::from_millis(100)).await;
        drop(mute);
        assert!(!soon(watched).await);
    }

    #[tokio::test]
    async fn a_broken_connection_is_no_death() {
        // Greets and hangs up, again and again, and lives.
        let listener = TcpListener::bind(local()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let watched = tokio::spawn(death(address, None));
        let mut greeted = Vec::new();
        while timeout(Duration::from_millis(600), async {
            let (mut stream, _) = listener.accept().await.unwrap();
            greeted.push(Instant::now());
            stream.write_all(&FIRST.0.to_le_bytes()).await.unwrap();
        })
        .await
        .is_ok()
        {}
        // No storm: each pause is twice as long as the one before.
        let mut pause = HURRY;
        for pair in greeted.windows(2) {
            assert!(pair[1] - pair[0] >= pause, "{greeted:?}");
            pause *= 2;
        }
        assert!(greeted.len() >= 4, "and no giving up: {greeted:?}");
        assert!(!watched.is_finished());
        watched.abort();
    }

    #[tokio::test]
    async fn a_question_that_is_lost_while_a_process_is_buried_is_asked_again() {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(local()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let watched = tokio::spawn(death(address, Some(FIRST)));
        let (mut held, _) = listener.accept().await.unwrap();
        held.write_all(&FIRST.0.to_le_bytes()).await.unwrap();
        // Whoever comes now is dropped without a word, as by a listener that is being closed.
        let mut waiting = Vec::new();
        while let Ok(stream) = timeout(Duration::from_millis(100), TcpStream::connect(address)).await {
            waiting.push(stream.unwrap());
        }
        drop(held);
        sleep(Duration::from_millis(50)).await;
        assert!(!watched.is_finished());
        drop((listener, waiting));
        assert!(soon(watched).await);
    }
}
