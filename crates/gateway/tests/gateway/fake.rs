//! A backend over a [`Keyspace`], that fails when it is told to.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use quorate_gateway::{
    Answer, Backend, BackendError, Backup, BackupError, BackupForm, Consistency, EventBatch,
    GroupStatus, Happened, Member, MemberChange, MemberError, MemberRefusal, MembersAnswer,
    NodeStatus, PeerLag, Role,
};
use quorate_types::auth::Directory;
use quorate_types::kv::{Command, Query, WatchEvents, command};
use quorate_types::{ClusterId, GroupId, LogIndex, NodeId, Term};

use crate::keyspace::Keyspace;
use crate::roster::Roster;

pub(crate) const CLUSTER: ClusterId = ClusterId(0xc0ffee);
pub(crate) const MEMBER: NodeId = NodeId(0xbeef);
pub(crate) const TERM: Term = Term(7);

/// One node that leads a group of its own.
pub(crate) struct FakeBackend {
    state: Arc<Mutex<State>>,
    /// The revision.
    changed: tokio::sync::watch::Sender<i64>,
    /// Proposals that have failed.
    refused: tokio::sync::watch::Sender<u64>,
    /// While false, reads do not come back.
    answers: tokio::sync::watch::Sender<bool>,
    held: tokio::sync::watch::Sender<usize>,
    /// How many reads there were.
    asked: tokio::sync::watch::Sender<usize>,
}

struct State {
    keyspace: Keyspace,
    roster: Roster,
    has_leader: bool,
    is_cut_off: bool,
    is_ready: bool,
    /// What every proposal and read fails with.
    failure: Option<BackendError>,
    /// How each read was asked for.
    reads: Vec<Consistency>,
    proposals: Vec<Command>,
    /// What serializable reads see, if the local replica lags behind.
    stale: Option<Keyspace>,
    /// What the local replica knows of users, if it lags behind.
    stale_directory: Option<Directory>,
    /// The local replica takes part, and so knows of users.
    has_directory: bool,
    /// How often space was given back.
    defragmented: u64,
    /// What every backup fails with.
    backup_failure: Option<BackupError>,
}

impl FakeBackend {
    pub(crate) fn new() -> Self {
        Self {
            changed: tokio::sync::watch::Sender::new(1),
            refused: tokio::sync::watch::Sender::new(0),
            answers: tokio::sync::watch::Sender::new(true),
            held: tokio::sync::watch::Sender::new(0),
            asked: tokio::sync::watch::Sender::new(0),
            state: Arc::new(Mutex::new(State {
                keyspace: Keyspace::new(),
                roster: Roster::of(Member {
                    id: MEMBER,
                    name: "n1".to_owned(),
                    peer_urls: vec!["http://127.0.0.1:2380".to_owned()],
                    client_urls: Vec::new(),
                    is_learner: false,
                }),
                has_leader: true,
                is_cut_off: false,
                is_ready: true,
                failure: None,
                reads: Vec::new(),
                proposals: Vec::new(),
                stale: None,
                stale_directory: None,
                has_directory: true,
                defragmented: 0,
                backup_failure: None,
            })),
        }
    }

    pub(crate) fn advertise(&self, address: SocketAddr) {
        self.state().roster.set_client_url(format!("http://{address}"));
    }

    pub(crate) fn fail_with(&self, failure: Option<BackendError>) {
        self.state().failure = failure;
    }

    pub(crate) fn lose_leader(&self) {
        self.state().has_leader = false;
    }

    /// As a node that hears nothing of the others: it knows no leader, and nobody to ask.
    pub(crate) fn cut_off(&self, is_cut_off: bool) {
        let mut state = self.state();
        (state.has_leader, state.is_cut_off) = (!is_cut_off, is_cut_off);
    }

    pub(crate) fn set_ready(&self, is_ready: bool) {
        self.state().is_ready = is_ready;
    }

    /// From now on serializable reads see the keyspace as it is now.
    pub(crate) fn lag_behind(&self) {
        let mut state = self.state();
        state.stale = Some(state.keyspace.clone());
    }

    /// The sweep behind compactions has come to a revision, and stays there.
    pub(crate) fn sweep_to(&self, revision: i64) {
        self.state().keyspace.sweep_to(revision);
    }

    /// How often space was given back.
    pub(crate) fn defragmented(&self) -> u64 {
        self.state().defragmented
    }

    pub(crate) fn fail_backups(&self, failure: BackupError) {
        self.state().backup_failure = Some(failure);
    }

    /// From now on the local replica knows users as they are now.
    pub(crate) fn lag_behind_in_users(&self) {
        let mut state = self.state();
        state.stale_directory = Some(state.keyspace.directory.clone());
    }

    /// From now on this node knows nothing of users: it has no replica that takes part.
    pub(crate) fn lose_directory(&self) {
        self.state().has_directory = false;
    }

    /// These are the users from now on.
    pub(crate) fn take_users(&self, directory: Directory) {
        self.state().keyspace.directory = directory;
    }

    /// The users as all replicas know them.
    pub(crate) fn directory_now(&self) -> Arc<Directory> {
        Arc::new(self.state().keyspace.directory.clone())
    }

    /// How the reads since the last call were asked for.
    pub(crate) fn take_reads(&self) -> Vec<Consistency> {
        std::mem::take(&mut self.state().reads)
    }

    /// As [`Self::take_reads`], once there are any.
    pub(crate) async fn next_reads(&self) -> Vec<Consistency> {
        let mut asked = self.asked.subscribe();
        loop {
            let reads = self.take_reads();
            if !reads.is_empty() {
                return reads;
            }
            asked.changed().await.expect("the sender is here");
        }
    }

    /// The commands proposed since the last call.
    pub(crate) fn take_proposals(&self) -> Vec<Command> {
        std::mem::take(&mut self.state().proposals)
    }

    /// Changes with every command that is proposed from now on.
    pub(crate) fn proposed(&self) -> tokio::sync::watch::Receiver<i64> {
        self.changed.subscribe()
    }

    /// Changes with every proposal that fails from now on.
    pub(crate) fn refused(&self) -> tokio::sync::watch::Receiver<u64> {
        self.refused.subscribe()
    }

    /// From now on reads do not come back.
    pub(crate) fn hold_reads(&self) {
        self.answers.send_replace(false);
    }

    /// The reads that were held come back.
    pub(crate) fn release_reads(&self) {
        self.answers.send_replace(true);
    }

    /// Waits until a read is held.
    pub(crate) async fn read_is_held(&self) {
        self.reads_are_held(1).await;
    }

    /// Waits until so many reads were held.
    pub(crate) async fn reads_are_held(&self, reads: usize) {
        let mut held = self.held.subscribe();
        held.wait_for(|count| *count >= reads).await.map(drop).expect("the sender is here");
    }

    /// Applies commands in one go, so that whoever follows is told of all of them at once.
    pub(crate) fn apply_all(&self, commands: impl IntoIterator<Item = command::Body>) {
        let mut state = self.state();
        for body in commands {
            state.keyspace.apply(&Command { body: Some(body), ..Command::default() });
        }
        self.changed.send_replace(state.keyspace.revision());
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds the state")
    }
}

impl Backend for FakeBackend {
    async fn propose(&self, command: Command) -> Result<Answer, BackendError> {
        let mut state = self.state();
        if let Some(failure) = &state.failure {
            self.refused.send_modify(|count| *count += 1);
            return Err(failure.clone());
        }
        let outcome = state.keyspace.apply(&command);
        state.proposals.push(command);
        self.changed.send_replace(state.keyspace.revision());
        Ok(Answer { outcome, raft_term: TERM })
    }

    async fn read(&self, query: Query, consistency: Consistency) -> Result<Answer, BackendError> {
        if !*self.answers.borrow() {
            self.held.send_modify(|count| *count += 1);
            // The sender is this backend's, which is there.
            drop(self.answers.subscribe().wait_for(|answers| *answers).await);
        }
        let mut state = self.state();
        state.reads.push(consistency);
        self.asked.send_modify(|count| *count += 1);
        if let Some(failure) = &state.failure {
            return Err(failure.clone());
        }
        let State { keyspace, stale, .. } = &mut *state;
        let seen = match consistency {
            Consistency::Serializable => stale.as_mut().unwrap_or(keyspace),
            Consistency::Linearizable => keyspace,
        };
        Ok(Answer { outcome: seen.read(&query), raft_term: TERM })
    }

    fn follow(&self, after: i64) -> BoxStream<'static, Result<Happened, BackendError>> {
        let (state, changed) = (Arc::clone(&self.state), self.changed.subscribe());
        stream::unfold((state, changed, after), |(state, mut changed, after)| async move {
            let through = *changed.wait_for(|now| *now > after).await.ok()?;
            let events = state.lock().expect("no test panics with it").keyspace.events_after(after);
            let events = Arc::new(WatchEvents(events));
            let batch = Happened::Batch(EventBatch { through, raft_term: TERM, events });
            Some((Ok(batch), (state, changed, through)))
        })
        .boxed()
    }

    fn auth_is_off(&self) -> bool {
        self.directory().is_some_and(|directory| !directory.enabled())
    }

    fn directory(&self) -> Option<Arc<Directory>> {
        let state = self.state();
        let known = state.stale_directory.as_ref().unwrap_or(&state.keyspace.directory);
        state.has_directory.then(|| Arc::new(known.clone()))
    }

    fn node_status(&self) -> NodeStatus {
        NodeStatus {
            cluster_id: CLUSTER,
            member_id: MEMBER,
            member_name: "n1".to_owned(),
            leader: self.state().has_leader.then_some(MEMBER),
            raft_term: TERM,
            raft_index: LogIndex(42),
            raft_applied: LogIndex(41),
            db_size_bytes: 20_480,
            db_in_use_bytes: 16_384,
            is_learner: false,
            errors: Vec::new(),
        }
    }

    fn is_cut_off(&self) -> bool {
        self.state().is_cut_off
    }

    fn members(&self) -> Vec<Member> {
        self.state().roster.members()
    }

    async fn members_now(&self) -> Result<(Vec<Member>, Term), BackendError> {
        let mut state = self.state();
        state.reads.push(Consistency::Linearizable);
        match &state.failure {
            Some(failure) => Err(failure.clone()),
            None => Ok((state.roster.members(), TERM)),
        }
    }

    async fn change_members(&self, change: MemberChange) -> Result<MembersAnswer, MemberError> {
        let mut state = self.state();
        if let Some(failure) = &state.failure {
            return Err(failure.clone().into());
        }
        let id = state.roster.change(change)?;
        Ok(MembersAnswer { id, members: state.roster.members(), raft_term: TERM })
    }

    async fn defragment(&self) -> Result<(), BackendError> {
        let mut state = self.state();
        if let Some(failure) = &state.failure {
            return Err(failure.clone());
        }
        state.defragmented += 1;
        Ok(())
    }

    async fn move_leader(&self, to: NodeId) -> Result<(), MemberError> {
        let state = self.state();
        if !state.has_leader {
            return Err(MemberRefusal::NotLeader.into());
        }
        let voters = state.roster.members().into_iter().filter(|member| !member.is_learner);
        match voters.map(|member| member.id).any(|id| id == to) {
            true => Ok(()),
            false => Err(MemberRefusal::BadTransferee.into()),
        }
    }

    async fn backup(&self, form: BackupForm) -> Result<Backup, BackupError> {
        if let Some(failure) = &self.state().backup_failure {
            return Err(failure.clone());
        }
        let content = format!("{form:?} ").repeat(30_000);
        let bytes = content.len() as u64;
        Ok(Backup { revision: 1, bytes, content: Box::new(std::io::Cursor::new(content)) })
    }

    async fn groups(&self) -> Vec<GroupStatus> {
        vec![GroupStatus {
            group: GroupId::FIRST_DATA,
            kind: "kv".to_owned(),
            node: MEMBER,
            role: Role::Leader,
            leader: Some(MEMBER),
            term: TERM,
            commit: LogIndex(42),
            applied: LogIndex(41),
            last: LogIndex(43),
            peers: vec![PeerLag { node: NodeId(2), match_index: LogIndex(40), lag: 3 }],
            asleep: false,
        }]
    }

    fn is_ready(&self) -> bool {
        self.state().is_ready
    }
}
