//! The way from one mount to the servers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dfs_client::{Reply, Transport};
use dfs_common::wire::meta::{MetaRequest, MetaResponse};
use dfs_common::wire::storage::{StorageRequest, StorageResponse};
use dfs_common::{Error, ErrorCode, MetaId, Result, StorageId};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::cluster::Cluster;
use super::dice::Dice;

/// Which cable is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cable {
    Group,
    Nodes,
    Both,
}

/// What becomes of the next requests that change something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// They never arrive.
    Request,
    /// They take effect and are not answered.
    Answer,
    /// They arrive late.
    Late,
}

#[derive(Debug)]
struct Gate {
    dice: Dice,
    /// The mount is gone: nothing more leaves it.
    dead: bool,
    group_cut_until: Instant,
    nodes_cut_until: Instant,
    group_losses: Vec<Loss>,
    node_losses: Vec<Loss>,
    /// Requests for changes that have left and not had their effect.
    on_the_way: u32,
}

/// See the module.
pub struct Wire {
    cluster: Arc<Cluster>,
    gate: Mutex<Gate>,
    /// Of requests on the way: go on, or be lost with the mount.
    fate: watch::Sender<Option<bool>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    Group,
    Node,
}

/// What becomes of one request.
struct Fate {
    travel: Duration,
    back: Duration,
    lost: Option<Loss>,
    /// A broken connection says so; a lost packet does not.
    says_so: bool,
}

impl Wire {
    pub fn new(cluster: &Arc<Cluster>, seed: u64) -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self {
            cluster: Arc::clone(cluster),
            gate: Mutex::new(Gate {
                dice: Dice::new(seed),
                dead: false,
                group_cut_until: now,
                nodes_cut_until: now,
                group_losses: Vec::new(),
                node_losses: Vec::new(),
                on_the_way: 0,
            }),
            fate: watch::Sender::new(None),
        })
    }

    pub fn cut(&self, cable: Cable, for_ms: u64) {
        let until = Instant::now() + Duration::from_millis(for_ms);
        let mut gate = self.gate.lock();
        if cable != Cable::Nodes {
            gate.group_cut_until = gate.group_cut_until.max(until);
        }
        if cable != Cable::Group {
            gate.nodes_cut_until = gate.nodes_cut_until.max(until);
        }
    }

    /// Requests or answers are yet to be lost.
    pub fn is_losing(&self) -> bool {
        let gate = self.gate.lock();
        !gate.group_losses.is_empty() || !gate.node_losses.is_empty()
    }

    pub fn lose(&self, cable: Cable, loss: Loss, count: u32) {
        let mut gate = self.gate.lock();
        for _ in 0..count {
            if cable != Cable::Nodes {
                gate.group_losses.push(loss);
            }
            if cable != Cable::Group {
                gate.node_losses.push(loss);
            }
        }
    }

    /// The mount dies. Of what is on its way some arrives at once, the rest never.
    pub async fn kill(&self) {
        {
            let mut gate = self.gate.lock();
            gate.dead = true;
            let arrives = gate.dice.one_in(2);
            self.fate.send_replace(Some(arrives));
        }
        while self.gate.lock().on_the_way > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn is_cut(&self, to: To) -> bool {
        let gate = self.gate.lock();
        let until = match to {
            To::Group => gate.group_cut_until,
            To::Node => gate.nodes_cut_until,
        };
        Instant::now() < until
    }

    /// `None`: it goes nowhere.
    fn send(&self, to: To, changes: bool) -> Option<Fate> {
        if self.is_cut(to) {
            return None;
        }
        let mut gate = self.gate.lock();
        if gate.dead {
            return None;
        }
        let lost = match to {
            To::Group if changes => gate.group_losses.pop(),
            To::Node if changes => gate.node_losses.pop(),
            _ => None,
        };
        let dice = &mut gate.dice;
        let mut travel_ms = dice.below(3);
        if lost == Some(Loss::Late) {
            travel_ms = dice.between(50, 1_500);
        }
        let fate = Fate {
            travel: Duration::from_millis(travel_ms),
            back: Duration::from_millis(dice.below(3)),
            lost,
            says_so: !dice.one_in(4),
        };
        gate.on_the_way += u32::from(changes);
        Some(fate)
    }

    /// Waits until a request has arrived; `false`: it never does.
    async fn arrive(&self, fate: &Fate) -> bool {
        let mut doom = self.fate.subscribe();
        let arrives = tokio::select! {
            biased;
            doomed = doom.wait_for(Option::is_some) => doomed.is_ok_and(|fate| *fate == Some(true)),
            () = sleep(fate.travel) => true,
        };
        arrives && fate.lost != Some(Loss::Request)
    }

    /// Runs to its end whatever becomes of the mount, as a server does.
    fn carry<T: Send + 'static>(
        self: &Arc<Self>,
        to: To,
        changes: bool,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> oneshot::Receiver<Result<T>> {
        let (sender, receiver) = oneshot::channel();
        let wire = Arc::clone(self);
        let Some(fate) = self.send(to, changes) else {
            // Nobody will ever answer.
            tokio::spawn(async move {
                let _never = sender;
                std::future::pending::<()>().await;
            });
            return receiver;
        };
        tokio::spawn(async move {
            let arrived = wire.arrive(&fate).await;
            let answer = if arrived { Some(work.await) } else { None };
            wire.gate.lock().on_the_way -= u32::from(changes);
            sleep(fate.back).await;
            let answer = answer.filter(|_| fate.lost != Some(Loss::Answer));
            let cut = wire.is_cut(to) || wire.gate.lock().dead;
            match answer {
                Some(answer) if !cut => {
                    let _ = sender.send(answer);
                }
                None if !cut && fate.says_so => {
                    let _ = sender.send(Err(Error::new(ErrorCode::Unreachable, "the connection broke")));
                }
                _ => {
                    let _never = sender;
                    std::future::pending::<()>().await;
                }
            }
        });
        receiver
    }
}

async fn sleep(time: Duration) {
    if time.is_zero() {
        tokio::task::yield_now().await;
    } else {
        tokio::time::sleep(time).await;
    }
}

/// One mount's end of its wire.
pub struct End(pub Arc<Wire>);

impl Transport for End {
    fn meta<'a>(&'a self, _: MetaId, request: &'a MetaRequest) -> Reply<'a, MetaResponse> {
        let changes = matches!(request, MetaRequest::Change(_) | MetaRequest::Changes(_));
        let (cluster, request) = (Arc::clone(&self.0.cluster), request.clone());
        let answer = self
            .0
            .carry(To::Group, changes, async move { cluster.meta(request).await });
        Box::pin(async move { answer.await.unwrap_or_else(|_| Err(ErrorCode::Unreachable.into())) })
    }

    fn storage<'a>(
        &'a self,
        node: StorageId,
        request: &'a StorageRequest,
        payload: &'a [Bytes],
    ) -> Reply<'a, (StorageResponse, Bytes)> {
        let changes = !matches!(request, StorageRequest::Read { .. });
        let (cluster, request, payload) = (Arc::clone(&self.0.cluster), request.clone(), payload.to_vec());
        let answer = self.0.carry(To::Node, changes, async move {
            cluster.storage(node, request, payload).await
        });
        Box::pin(async move { answer.await.unwrap_or_else(|_| Err(ErrorCode::Unreachable.into())) })
    }
}
