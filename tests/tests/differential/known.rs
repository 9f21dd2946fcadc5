//! Where Quorate answers otherwise than etcd 3.5.1, by name: bugs of that version, and what we do otherwise on
//! purpose. Any other difference fails the test.

use std::collections::{BTreeMap, BTreeSet};

/// How a row is dealt with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Treatment {
    /// Both sides are asked, and their answers may differ as the row says.
    Differs,
    /// Only Quorate is asked: etcd would not be there afterwards, or would hold something else.
    OursOnly,
    /// It is drawn and not sent: the stores would hold different things afterwards.
    LeftOut,
}

/// What is compared together: one test each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// `KV`.
    Keys,
    /// `Lease`.
    Leases,
    /// `Watch`.
    Watches,
    /// Hashes of keys, compactions and alarms.
    Upkeep,
    /// `Auth`.
    Users,
    /// `Lock` and `Election`.
    Queues,
    /// `Cluster`, and where the leader is.
    Members,
    /// The rest of `Maintenance`.
    Maintenance,
}

macro_rules! table {
    ($($name:ident, $family:ident, $treatment:ident, $etcd:literal, $quorate:literal, $why:literal;)*) => {
        /// The rows.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Known { $(#[doc = $etcd] $name,)* }

        impl Known {
            /// Every row.
            const ALL: &[Self] = &[$(Self::$name,)*];

            fn family(self) -> Family {
                match self { $(Self::$name => Family::$family,)* }
            }

            fn treatment(self) -> Treatment {
                match self { $(Self::$name => Treatment::$treatment,)* }
            }

            /// What etcd does, what we do, and why.
            fn words(self) -> [&'static str; 3] {
                match self { $(Self::$name => [$etcd, $quorate, $why],)* }
            }
        }
    };
}

table! {
    UnknownSortTarget, Keys, OursOnly, "its process ends", "refuses it", "bug: a nil sorter is called";
    UnknownSortOrder, Keys, Differs, "answers in any order", "refuses it", "we do not guess";
    UnknownCompare, Keys, Differs, "takes the compare for a success", "refuses it", "we do not guess";
    KeepAfterDeleteFrom, Keys, LeftOut,
        "its process ends when a put keeps the value or the lease of a key that the same transaction has deleted by a \
         range without an end", "refuses it", "bug: the check for keys that are written twice overlooks that form";
    ReadElsewhereAndWrite, Keys, LeftOut,
        "refuses a transaction that reads at a compacted or future revision at the member that was asked, and writes \
         it at all others", "refuses it everywhere", "bug: who owes no answer leaves the reads out before they are checked";
    ProgressBeforeEvents, Watches, Differs, "answers a progress request before events up to that revision are sent",
        "answers when they are sent", "bug: who resumes from there misses them";
    ProgressBehind, Watches, Differs, "answers a progress request with the node's revision",
        "with the revision up to which all was sent, which may come after the answer to a write", "progress is true";
    AtCompaction, Watches, Differs,
        "of the compacted revision itself it tells no delete and no pair before, once it has swept",
        "tells them as long as they are there", "either may be: what is below is gone";
    NestedPutWithoutSpace, Upkeep, LeftOut, "takes puts in nested transactions without space", "refuses them",
        "bug: they are not counted";
    OneAlarmClearsAll, Upkeep, Differs, "takes writes when one alarm is cleared, although another one is raised",
        "refuses them until the last one is cleared", "bug: the check is put back as if there were none";
    HashOfNothing, Upkeep, Differs,
        "hashes what its sweep has not come to yet, if no key was there at the hash's revision", "hashes what is left",
        "bug: an empty set of what is kept is taken for none";
    UnknownAlarm, Upkeep, OursOnly, "its process ends", "refuses it", "bug: it panics when it is applied";
    NestedReadUnchecked, Users, Differs, "lets a nested transaction read what its user may not", "refuses it",
        "bug: permissions of nested transactions are not looked at";
    EmptyTxnForAll, Users, Differs, "lets anybody run a transaction that touches no key", "asks who it is first",
        "nobody is served who is not known";
    CompactionForAll, Users, Differs, "lets anybody compact, even who is not known", "keeps it for root",
        "history belongs to all users";
    UnknownTokenWhileOpen, Users, Differs, "refuses tokens that it does not know although users do not count",
        "does not look at them", "its later versions do not either";
    PasswordOfNone, Users, Differs, "sends the code Unknown and another prefix for the password of a user without one",
        "sends InvalidArgument, and the prefix of all others", "it is a login that fails like any other";
    RangeWithoutKeys, Users, Differs, "decides by its tree of intervals who may have a range that ends before it begins",
        "lets in who may have its first key", "no key is touched, and the rule is a plain one";
    PreviousValueInTxn, Users, LeftOut, "shows what was there before a put of a transaction to who may only write",
        "refuses it", "bug: what is read is not looked at";
    EmptyPassword, Users, OursOnly, "takes an empty password", "refuses it", "it is no password";
    RangesOfOneKey, Users, LeftOut,
        "finds only the first of a role's permissions that begin with one key, and takes others for new",
        "finds each", "bug: they are searched by the key alone";
    DuplicateAndUnknown, Users, Differs, "says that a transaction writes a key twice before it looks at the token",
        "looks at the token first", "nobody is told anything who is not known";
    ReadDeniedAndWrite, Users, LeftOut,
        "refuses a transaction that reads what its user may not and writes what it may at the member that was asked, \
         and writes it at all others", "refuses it everywhere",
        "bug: who owes no answer leaves the reads out before rights are looked at";
    HeldAgain, Queues, Differs, "a call of a lease that has the key already reads it", "writes it again",
        "the last call is the one that is undone when it ends";
    RefusedAtOnce, Queues, Differs, "who waits without a lease is told so when its turn comes", "is told so at once",
        "it waits for nothing";
    LeaderWithoutKey, Queues, Differs, "who campaigned and has no key any more is called the leader at its turn",
        "is refused", "bug: two leaders";
    HolderByName, Queues, Differs, "who waited is let in when its key was made anew by another call", "is refused",
        "bug: two holders; the key is looked for by its name alone";
    TwoCallsOfOneLease, Queues, LeftOut, "a call of a lease whose key waits already is undone by the key's name",
        "by the revision of its write", "when it comes to the server cannot be seen";
    PeerUrlScheme, Members, Differs, "keeps the scheme of a peer URL", "shows quic://", "nodes speak nothing else";
    AddedVoterWaits, Members, Differs, "an added voter counts at once", "it is a learner until it has caught up",
        "who does not run must not cost a majority";
    UpdatedLearnerVotes, Members, Differs, "makes a voter of a learner whose peer URL is changed", "it stays a learner",
        "bug: the mark is not kept";
    UpdateUnchecked, Members, Differs, "takes any text for a peer URL of an update", "refuses what is none",
        "nobody could dial it";
    OnePeerUrl, Members, Differs, "takes several peer URLs", "refuses them", "nodes would not know which to dial";
    AddWhileUnhealthy, Members, Differs, "adds nobody while a voter cannot be reached",
        "adds as long as those that have joined are a majority", "who replaces a lost node has to be added first";
    PromoteUnknown, Members, Differs, "a node that does not lead asks on and on for the promotion of an unknown member",
        "refuses it", "bug: one refusal is taken for a leader that cannot be reached";
    DowngradeUnanswered, Maintenance, Differs, "begins and ends a downgrade, and never says so",
        "answers", "bug: nobody wakes the call";
    UnknownMethodCode, Maintenance, Differs, "sends the code Unknown for a step of a downgrade that does not exist",
        "sends InvalidArgument", "it is the client's mistake";
}

/// A row that one in `n` sequences meets is missed by `SURE * n` of them once in 10^10 runs.
const SURE: u64 = 25;

impl Known {
    /// At least one in so many sequences meets it; each was seen more often, or is met by a script.
    const fn one_in(self) -> u64 {
        match self {
            // By time alone, with a node that is slow to hear.
            Self::ProgressBehind => 200,
            _ => 20,
        }
    }
}

/// How often each row was met.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// How often, and in how many sequences.
    met: BTreeMap<Known, (u64, u64)>,
    /// Those of the present sequence.
    present: BTreeSet<Known>,
}

impl Ledger {
    pub(crate) fn note(&mut self, known: Known) {
        let (times, sequences) = self.met.entry(known).or_default();
        *times += 1;
        *sequences += u64::from(self.present.insert(known));
    }

    pub(crate) fn end_sequence(&mut self) {
        self.present.clear();
    }

    /// The rows of a family that so many sequences should have met and did not: they may say what is not so any more.
    pub(crate) fn missing(&self, family: Family, sequences: u64) -> Vec<Known> {
        let is_due = |known: &Known| sequences >= SURE * known.one_in();
        let rows = Known::ALL.iter().copied().filter(|known| known.family() == family);
        rows.filter(|known| is_due(known) && !self.met.contains_key(known)).collect()
    }

    /// The rows of a family: those that were met, and how often, and those that were not.
    pub(crate) fn report(&self, family: Family) -> String {
        let mut lines = Vec::new();
        for known in Known::ALL.iter().filter(|known| known.family() == family) {
            let [etcd, quorate, why] = known.words();
            let treatment = known.treatment();
            lines.push(match self.met.get(known) {
                Some((times, sequences)) => {
                    format!("  {known:?} ({treatment:?}): {times} times, in {sequences} sequences")
                }
                None => format!(
                    "  {known:?} ({treatment:?}): NEVER MET: etcd {etcd}; Quorate {quorate}; {why}"
                ),
            });
        }
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_says_what_both_do_and_why() {
        for known in Known::ALL {
            assert!(known.words().iter().all(|words| !words.is_empty()), "{known:?}");
        }
    }

    #[test]
    fn a_report_names_what_was_met_and_what_was_not() {
        let mut ledger = Ledger::default();
        ledger.note(Known::HeldAgain);
        ledger.note(Known::HeldAgain);
        ledger.end_sequence();
        ledger.note(Known::HeldAgain);
        let report = ledger.report(Family::Queues);
        assert!(report.contains("HeldAgain (Differs): 3 times, in 2 sequences"), "{report}");
        assert!(report.contains("HolderByName (Differs): NEVER MET"), "{report}");
        assert!(!report.contains("UnknownSortOrder"), "{report}");
    }

    #[test]
    fn a_row_that_enough_sequences_have_not_met_is_missing() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.missing(Family::Maintenance, 499), []);
        ledger.note(Known::UnknownMethodCode);
        let missing = ledger.missing(Family::Maintenance, 500);
        assert_eq!(missing, [Known::DowngradeUnanswered]);
        assert!(!ledger.missing(Family::Watches, 500).contains(&Known::ProgressBehind));
        assert!(ledger.missing(Family::Watches, 5000).contains(&Known::ProgressBehind));
    }
}
