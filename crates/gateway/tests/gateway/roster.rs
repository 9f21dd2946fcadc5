//! The members of a pretended cluster, by the rules that etcd keeps: nobody but the first ever starts.

use quorate_gateway::{Member, MemberChange, MemberRefusal};
use quorate_types::NodeId;

/// Most learners, as etcd's default.
const LEARNERS_MAX: usize = 1;

/// Who belongs to the cluster.
#[derive(Debug)]
pub(crate) struct Roster {
    members: Vec<Member>,
    added: u64,
}

impl Roster {
    /// One member, which has started.
    pub(crate) fn of(first: Member) -> Self {
        Self { members: vec![first], added: 0 }
    }

    pub(crate) fn members(&self) -> Vec<Member> {
        self.members.clone()
    }

    pub(crate) fn set_client_url(&mut self, url: String) {
        self.members[0].client_urls = vec![url];
    }

    /// The member that the change was about.
    pub(crate) fn change(&mut self, change: MemberChange) -> Result<NodeId, MemberRefusal> {
        match change {
            MemberChange::Add { name, peer_address, learner } => {
                self.check_address(&peer_address, None)?;
                let learners = self.members.iter().filter(|member| member.is_learner).count();
                if learner && learners >= LEARNERS_MAX {
                    return Err(MemberRefusal::TooManyLearners);
                }
                Ok(self.add(name, &peer_address))
            }
            MemberChange::Promote(id) => match self.find(id)?.is_learner {
                true => Err(MemberRefusal::LearnerNotReady),
                false => Err(MemberRefusal::NotLearner),
            },
            MemberChange::Remove(id) => {
                if !self.find(id)?.is_learner {
                    return Err(MemberRefusal::NotEnoughStarted);
                }
                self.members.retain(|member| member.id != id);
                Ok(id)
            }
            MemberChange::Move { id, peer_address } => {
                self.find(id)?;
                self.check_address(&peer_address, Some(id))?;
                self.find(id)?.peer_urls = vec![format!("http://{peer_address}")];
                Ok(id)
            }
            MemberChange::Replace { id, peer_address } => {
                let name = self.find(id)?.name.clone();
                self.members.retain(|member| member.id != id);
                Ok(self.add(name, &peer_address))
            }
        }
    }

    fn add(&mut self, name: String, peer_address: &str) -> NodeId {
        self.added += 1;
        let id = NodeId(self.added);
        let peer_urls = vec![format!("http://{peer_address}")];
        let member = Member { id, name, peer_urls, client_urls: Vec::new(), is_learner: true };
        self.members.push(member);
        id
    }

    fn find(&mut self, id: NodeId) -> Result<&mut Member, MemberRefusal> {
        self.members.iter_mut().find(|member| member.id == id).ok_or(MemberRefusal::NotFound)
    }

    fn check_address(&self, address: &str, own: Option<NodeId>) -> Result<(), MemberRefusal> {
        let url = format!("http://{address}");
        let taken = |member: &Member| Some(member.id) != own && member.peer_urls.contains(&url);
        match self.members.iter().any(taken) {
            true => Err(MemberRefusal::AddressTaken),
            false => Ok(()),
        }
    }
}
