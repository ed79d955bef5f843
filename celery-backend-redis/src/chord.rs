//! Counting the members of chords.
//!
//! Each operation is one script on Celery's own keys, so that Python and Rust
//! workers count the members of one chord together and either can send its
//! body. Two further keys, used by this crate alone, let a sweeper find a chord
//! whose worker has died.

use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use celery_broker_redis::client::{Command, Operation, RedisReply, Script};
use celery_protocol::{DecodeError, Raw, Serializer, State, decompress_document};
use celery_runtime::{
    ChordClaim, ChordEnd, ChordMember, ChordResults, ChordStart, MemberResult, ServiceError,
    ServiceErrorKind, StalledChord,
};

use crate::backend::{ChordOrder, MAX_VALUE_SIZE, RedisBackend, seconds};

macro_rules! script {
    ($name:literal) => {
        LazyLock::new(|| {
            Script::new(concat!(
                include_str!("../scripts/chord/common.lua"),
                include_str!(concat!("../scripts/chord/", $name, ".lua")),
            ))
        })
    };
}

static BEGIN: LazyLock<Script> = script!("begin");
static ADD_MEMBER: LazyLock<Script> = script!("add_member");
static COMPLETE_MEMBER: LazyLock<Script> = script!("complete_member");
static RENEW_CLAIM: LazyLock<Script> = script!("renew_claim");
static FINISH: LazyLock<Script> = script!("finish");
static CLAIM_IF_COMPLETE: LazyLock<Script> = script!("claim_if_complete");
static OVERDUE: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../scripts/chord/overdue.lua")));

/// The interval between two checks of an incomplete chord: its age, within
/// these limits.
const MIN_RECHECK_INTERVAL: Duration = Duration::from_secs(5);
const MAX_RECHECK_INTERVAL: Duration = Duration::from_secs(300);

/// The age up to which a chord without a size is still checked. A later start
/// may set its size.
const MISSING_SIZE_TIMEOUT: Duration = Duration::from_secs(86_400);

/// The number of overdue chords per call.
const CLAIM_BATCH_SIZE: &[u8] = b"100";

/// The minimum time, taken from Celery, in which an ended chord recognizes late
/// results.
const MIN_DONE_MARKER_TTL: u128 = 300;

impl RedisBackend {
    pub(crate) async fn begin_chord(&self, chord: &ChordStart) -> Result<(), ServiceError> {
        let id = &chord.group_id;
        let object = chord_object(id);
        let operation = Operation::new("start", &object);
        let size = chord.size.to_string();
        let expires = self.chord_seconds().to_string();
        let tree = chord.tree.as_ref();
        let tree = tree.map(|tree| self.group_document(operation, tree));
        let tree = tree.transpose()?.unwrap_or_default();
        let arguments = [id.as_bytes(), size.as_bytes(), expires.as_bytes(), &tree];
        self.run_script(operation, &BEGIN, id, &arguments)
            .await
            .map(drop)
    }

    pub(crate) async fn add_chord_member(
        &self,
        group_id: &str,
        task_id: &str,
    ) -> Result<(), ServiceError> {
        let object = chord_object(group_id);
        let operation = Operation::new("extend", &object);
        let expires = self.chord_seconds().to_string();
        let arguments = [task_id, &expires].map(str::as_bytes);
        let extended = self.run_script(operation, &ADD_MEMBER, group_id, &arguments);
        extended.await.map(drop)
    }

    pub(crate) async fn complete_chord_member(
        &self,
        member: &ChordMember<'_>,
        claim: &ChordClaim,
    ) -> Result<Option<ChordResults>, ServiceError> {
        let object = chord_object(member.group_id);
        let operation = Operation::new("count a member of", &object);
        let index = member
            .index
            .map_or("+inf".into(), |index| index.to_string());
        let encoded = (1, member.task_id, member.state.name(), member.result);
        let encoded = self.serializer.encode(&encoded);
        let encoded = encoded.map_err(|error| self.invalid(operation, &error.to_string()))?;
        if encoded.len() > MAX_VALUE_SIZE {
            return Err(self.invalid(operation, "the result is larger than 512 MB"));
        }
        let (body, serializer) = self.encode_body(operation, member.body)?;
        let numbers = [
            self.chord_seconds(),
            self.tree_seconds(),
            ttl(claim),
            MIN_RECHECK_INTERVAL.as_millis(),
        ];
        let [expires, tree_expires, ttl, first_check] = numbers.map(|number| number.to_string());
        let arguments = [
            member.group_id.as_bytes(),
            member.task_id.as_bytes(),
            index.as_bytes(),
            &encoded,
            self.ordered(),
            expires.as_bytes(),
            tree_expires.as_bytes(),
            claim.token.as_bytes(),
            ttl.as_bytes(),
            &body,
            serializer.name().as_bytes(),
            first_check.as_bytes(),
        ];
        let counted = self.run_script(operation, &COMPLETE_MEMBER, member.group_id, &arguments);
        match counted.await? {
            RedisReply::List(claimed) => self.results(operation, claimed).map(Some),
            _ => Ok(None),
        }
    }

    pub(crate) async fn renew_chord_claim(
        &self,
        group_id: &str,
        claim: &ChordClaim,
    ) -> Result<bool, ServiceError> {
        let object = chord_object(group_id);
        let operation = Operation::new("renew the claim of", &object);
        let ttl = ttl(claim).to_string();
        let arguments = [claim.token.as_bytes(), ttl.as_bytes()];
        let renewed = self
            .run_script(operation, &RENEW_CLAIM, group_id, &arguments)
            .await?;
        Ok(renewed.number() == 1)
    }

    pub(crate) async fn finish_chord(
        &self,
        group_id: &str,
        claim: &ChordClaim,
        end: ChordEnd,
    ) -> Result<bool, ServiceError> {
        let object = chord_object(group_id);
        let operation = Operation::new("end", &object);
        let outcome = match end {
            ChordEnd::Failed => "failed",
            _ => "continued",
        };
        let done_ttl = (2 * ttl(claim)).max(MIN_DONE_MARKER_TTL).to_string();
        let arguments = [group_id, &claim.token, outcome, &done_ttl].map(str::as_bytes);
        let ended = self
            .run_script(operation, &FINISH, group_id, &arguments)
            .await?;
        Ok(ended.number() == 1)
    }

    pub(crate) async fn claim_stalled_chords(
        &self,
        claim: &ChordClaim,
        limit: usize,
    ) -> Result<Vec<StalledChord>, ServiceError> {
        let operation = Operation::new("list", "overdue chords");
        let due = self
            .client
            .script(
                operation,
                &OVERDUE,
                &[&self.keys.chords()],
                &[CLAIM_BATCH_SIZE],
            )
            .await?;
        let mut stalled = Vec::new();
        for id in due.list().into_iter().filter_map(RedisReply::text) {
            if stalled.len() >= limit {
                break;
            }
            match self.claim_if_complete(id, claim).await {
                Ok(chord) => stalled.extend(chord),
                Err(error) if error.kind() == ServiceErrorKind::Invalid => {
                    tracing::warn!("{error}; checking it again in {MAX_RECHECK_INTERVAL:?}");
                }
                Err(error) if stalled.is_empty() => return Err(error),
                // The chords that are claimed can be resumed.
                Err(_) => break,
            }
        }
        Ok(stalled)
    }

    /// Claims a stalled chord. The next check of a chord whose keys or results are
    /// broken is postponed, so that it does not block the others.
    async fn claim_if_complete(
        &self,
        group_id: String,
        claim: &ChordClaim,
    ) -> Result<Option<StalledChord>, ServiceError> {
        let object = chord_object(&group_id);
        let operation = Operation::new("claim", &object);
        let numbers = [
            ttl(claim),
            MIN_RECHECK_INTERVAL.as_millis(),
            MAX_RECHECK_INTERVAL.as_millis(),
            MISSING_SIZE_TIMEOUT.as_millis(),
        ];
        let [ttl, min_interval, max_interval, missing_size_timeout] =
            numbers.map(|number| number.to_string());
        let arguments = [
            group_id.as_bytes(),
            self.ordered(),
            claim.token.as_bytes(),
            ttl.as_bytes(),
            min_interval.as_bytes(),
            max_interval.as_bytes(),
            missing_size_timeout.as_bytes(),
        ];
        let reply = self
            .run_script(operation, &CLAIM_IF_COMPLETE, &group_id, &arguments)
            .await?;
        let RedisReply::List(claimed) = reply else {
            return Ok(None);
        };
        match self.stalled_chord(operation, &group_id, claimed) {
            Ok(chord) => Ok(Some(chord)),
            Err(error) => {
                self.postpone(operation, &group_id).await?;
                Err(error)
            }
        }
    }

    /// Decodes a claimed chord: body, its serializer, results and result tree.
    fn stalled_chord(
        &self,
        operation: Operation<'_>,
        group_id: &str,
        claimed: Vec<RedisReply>,
    ) -> Result<StalledChord, ServiceError> {
        let mut claimed = claimed.into_iter();
        let body = claimed
            .next()
            .and_then(RedisReply::data)
            .unwrap_or_default();
        let serializer = claimed
            .next()
            .and_then(RedisReply::text)
            .unwrap_or_default();
        let body = decode_body(&serializer, &body);
        let body = body.map_err(|error| self.invalid(operation, &error.to_string()))?;
        let results = self.results(operation, claimed.collect())?;
        Ok(StalledChord::new(group_id, body, results))
    }

    /// Delays the next check of a chord that cannot be decoded here. Another
    /// worker may be able to decode it.
    async fn postpone(&self, operation: Operation<'_>, group_id: &str) -> Result<(), ServiceError> {
        let postponed = Command::new("ZINCRBY")
            .arg(self.keys.chords())
            .arg(MAX_RECHECK_INTERVAL.as_millis().to_string())
            .arg(group_id);
        self.client.call(operation, postponed).await.map(drop)
    }

    /// Decodes the results of the members, and the result tree of the header if
    /// it is stored.
    fn results(
        &self,
        operation: Operation<'_>,
        claimed: Vec<RedisReply>,
    ) -> Result<ChordResults, ServiceError> {
        let mut claimed = claimed.into_iter();
        let encoded = claimed.next().map_or_else(Vec::new, RedisReply::list);
        let encoded = encoded.into_iter().filter_map(RedisReply::data);
        let members = encoded.map(|member| self.member_result(operation, &member));
        let members = members.collect::<Result<_, _>>()?;
        let tree = claimed.next().and_then(RedisReply::data);
        let tree = tree.map(|tree| self.group_tree(operation, &tree));
        Ok(ChordResults::new(members, tree.transpose()?))
    }

    fn member_result(
        &self,
        operation: Operation<'_>,
        encoded: &Bytes,
    ) -> Result<MemberResult, ServiceError> {
        decode_member(self.serializer, encoded).map_err(|error| {
            self.invalid(
                operation,
                &format!("cannot decode the result of a member: {error}"),
            )
        })
    }

    /// Encodes the body in the serializer of the message it came with, which
    /// may differ from that of results. Falls back to JSON if this build cannot
    /// write that serializer.
    fn encode_body(
        &self,
        operation: Operation<'_>,
        body: &Raw<'_>,
    ) -> Result<(Vec<u8>, Serializer), ServiceError> {
        let mut serializer = body.serializer();
        let mut encoded = serializer.encode(body);
        if encoded.is_err() {
            serializer = Serializer::Json;
            encoded = serializer.encode(body);
        }
        let encoded = encoded.map_err(|error| self.invalid(operation, &error.to_string()))?;
        Ok((encoded, serializer))
    }

    /// Runs a script on the keys of a chord.
    async fn run_script(
        &self,
        operation: Operation<'_>,
        script: &Script,
        group_id: &str,
        arguments: &[&[u8]],
    ) -> Result<RedisReply, ServiceError> {
        let keys = self.keys.chord(group_id);
        let keys = keys.each_ref().map(String::as_str);
        self.client
            .script(operation, script, &keys, arguments)
            .await
    }

    /// Returns the scripts' flag for results stored by index.
    fn ordered(&self) -> &'static [u8] {
        match self.chord_order {
            ChordOrder::Index => b"1",
            ChordOrder::Arrival => b"0",
        }
    }

    /// Returns the expiry of the keys of a chord.
    fn chord_seconds(&self) -> u128 {
        seconds(self.chord_expires.or(self.expires))
    }

    /// Returns the expiry of the result tree of the header. Clients read it
    /// too, so it lives at least as long as results.
    fn tree_seconds(&self) -> u128 {
        match (self.chord_seconds(), seconds(self.expires)) {
            (0, _) | (_, 0) => 0,
            (chord, results) => chord.max(results),
        }
    }
}

/// Decodes a member's result in Celery's form: `[1, <task id>, <state>,
/// <result>]`.
fn decode_member(serializer: Serializer, encoded: &[u8]) -> Result<MemberResult, DecodeError> {
    let bytes = decompress_document(encoded, MAX_VALUE_SIZE)?;
    let encoded = Raw::read(serializer, &bytes)?;
    let [_, task_id, state, result] = &encoded.elements()?[..] else {
        return Err(DecodeError::new("expected [1, task id, state, result]"));
    };
    let task_id: String = task_id.decode()?;
    let state: String = state.decode()?;
    Ok(MemberResult::new(
        task_id,
        State::named(&state),
        result.clone().into_owned(),
    ))
}

fn decode_body(serializer: &str, body: &[u8]) -> Result<Raw<'static>, DecodeError> {
    let serializer = Serializer::from_name(serializer)
        .ok_or_else(|| DecodeError::new(format!("unknown serializer {serializer:?}")))?;
    Raw::read(serializer, body).map(Raw::into_owned)
}

/// Returns the lifetime of a claim in seconds. A claim without expiry could
/// never be taken over.
fn ttl(claim: &ChordClaim) -> u128 {
    seconds(Some(claim.ttl)).max(1)
}

fn chord_object(group_id: &str) -> String {
    format!("chord {group_id}")
}
