//! librdkafka's errors, classed once.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::errors::{Code, Error};

/// What an error of Kafka's is to the caller, and what its detail says.
///
/// What passes by itself, or with a new client (which the next call gets), is 503; what may or may not have been done in
/// the time there was, 504. What is not named here is a fault of ours, of the configuration or of the cluster that no
/// retry of the same call mends: 500. The test below holds the whole table.
pub fn classify(code: RDKafkaErrorCode) -> (Code, &'static str) {
    use RDKafkaErrorCode as K;
    match code {
        K::UnknownTopic | K::UnknownTopicOrPartition | K::UnknownTopicId => {
            (Code::TopicNotFound, "The topic does not exist")
        }
        K::UnknownPartition => (Code::PartitionNotFound, "The partition does not exist"),
        K::InvalidTopic => (Code::InvalidParameter, "topic: Kafka refuses this name"),
        K::InvalidGroupId => (Code::InvalidParameter, "group_id: Kafka refuses this id"),
        K::InvalidPartitions | K::InvalidConfig | K::PolicyViolation => {
            (Code::InvalidParameter, "Kafka refuses the topic's settings")
        }
        K::TopicAlreadyExists => (Code::TopicExists, "A topic of this name exists already"),
        K::MessageSizeTooLarge | K::MessageBatchTooLarge => {
            (Code::RecordTooLarge, "The record is larger than the topic allows (max.message.bytes)")
        }
        K::InvalidRecord | K::InvalidTimestamp | K::InvalidMessage => (
            Code::UnprocessableRecord,
            "Kafka refuses this record: its timestamp, or a missing key on a compacted topic",
        ),
        K::TopicAuthorizationFailed | K::GroupAuthorizationFailed => {
            (Code::TopicForbidden, "Kafka's own access control does not let the gateway use this topic or group")
        }
        K::ClusterAuthorizationFailed
        | K::TransactionalIdAuthorizationFailed
        | K::DelegationTokenAuthorizationFailed
        | K::TopicDeletionDisabled => (Code::Forbidden, "Kafka's own access control does not let the gateway do this"),
        K::ThrottlingQuotaExceeded => (Code::Throttled, "Kafka asks for a slower pace"),
        // How the coordinator refuses those who are no members, while there are members. (`Group::refusal` looks closer
        // where it can.) `GroupIdNotFound` is not among them: a group that expired just now is made by the next commit.
        K::UnknownMemberId
        | K::IllegalGeneration
        | K::RebalanceInProgress
        | K::InconsistentGroupProtocol
        | K::NonEmptyGroup
        | K::GroupMaxSizeReached
        | K::GroupSubscribedToTopic
        | K::FencedInstanceId
        | K::UnreleasedInstanceId
        | K::FencedMemberEpoch
        | K::StaleMemberEpoch => (Code::GroupInUse, "The consumer group has live members"),
        // Purged: a call of this sandbox gave up, see `Producer::give_up`.
        K::MessageTimedOut
        | K::OperationTimedOut
        | K::RequestTimedOut
        | K::TimedOutQueue
        | K::PurgeQueue
        | K::PurgeInflight => (Code::DeadlineExceeded, "Kafka did not answer in time"),
        _ if passes(code) => (Code::BrokerUnavailable, UNAVAILABLE),
        _ => (Code::Internal, "The request could not be completed"),
    }
}

const UNAVAILABLE: &str = "Kafka cannot be reached, or cannot do this just now";

/// What another try of the same call may well not meet again.
fn passes(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as K;
    matches!(
        code,
        // The way to the brokers, and our login at them.
        K::BrokerTransportFailure
            | K::BrokerDestroy
            | K::DestroyBroker
            | K::AllBrokersDown
            | K::Resolve
            | K::NodeUpdate
            | K::UnknownBroker
            | K::NetworkException
            | K::SSL
            | K::Authentication
            | K::SaslAuthenticationFailed
            | K::UnsupportedSASLMechanism
            | K::IllegalSASLState
            | K::DelegationTokenExpired
            | K::RebootstrapRequired
            // Brokers that are starting, moving or short of replicas.
            | K::BrokerNotAvailable
            | K::LeaderNotAvailable
            | K::NotLeaderForPartition
            | K::ReplicaNotAvailable
            | K::PreferredLeaderNotAvailable
            | K::EligibleLeadersNotAvailable
            | K::ListenerNotFound
            | K::FencedLeaderEpoch
            | K::UnknownLeaderEpoch
            | K::StaleBrokerEpoch
            | K::StaleControllerEpoch
            | K::NotController
            | K::ReassignmentInProgress
            | K::OperationNotAttempted
            | K::KafkaStorageError
            | K::NotEnoughReplicas
            | K::NotEnoughReplicasAfterAppend
            | K::ISRInsufficient
            // A topic is being made while too few brokers are there.
            | K::InvalidReplicationFactor
            // Coordinators.
            | K::CoordinatorNotAvailable
            | K::CoordinatorLoadInProgress
            | K::NotCoordinator
            | K::WaitingForCoordinator
            | K::TransactionCoordinatorFenced
            | K::UnstableOffsetCommit
            | K::ConcurrentTransactions
            | K::GroupIdNotFound
            | K::MemberIdRequired
            | K::AssignmentLost
            | K::PollExceeded
            // A producer that another one has replaced, or whose state the broker no longer has.
            | K::Fatal
            | K::Fenced
            | K::ProducerFenced
            | K::InvalidProducerEpoch
            | K::InvalidProducerIdMapping
            | K::InvalidTransactionalState
            | K::UnknownProducerId
            | K::OutOfOrderSequenceNumber
            | K::DuplicateSequenceNumber
            | K::GaplessGuarantee
            | K::Inconsistent
            // Another record in the batch was at fault.
            | K::InvalidDifferentRecord
            // A log that was cut while it was read.
            | K::OffsetOutOfRange
            | K::OffsetNotAvailable
            | K::AutoOffsetReset
            | K::LogTruncation
            | K::FetchSessionIdNotFound
            | K::InvalidFetchSessionEpoch
            // The client itself, in the middle of something.
            | K::QueueFull
            | K::InProgress
            | K::PreviousInProgress
            | K::Conflict
            | K::Outdated
            | K::WaitCache
            | K::Interrupted
            | K::Partial
            | K::Retry
    )
}

/// Makes the public error of a Kafka error, with the Kafka error as its cause.
pub fn from_kafka(error: KafkaError) -> Error {
    let class = match &error {
        // The client was replaced while the call waited on it.
        KafkaError::Canceled => Some((Code::BrokerUnavailable, UNAVAILABLE)),
        KafkaError::AdminOp(code) => Some(classify(*code)),
        _ => error.rdkafka_error_code().map(classify),
    };
    let (code, detail) = match (class, &error) {
        // librdkafka itself says that another try, or another transaction, may do.
        (None | Some((Code::Internal, _)), KafkaError::Transaction(cause))
            if cause.is_retriable() || cause.txn_requires_abort() =>
        {
            (Code::BrokerUnavailable, UNAVAILABLE)
        }
        (Some(class), _) => class,
        (None, _) => (Code::Internal, "The request could not be completed"),
    };
    Error::new(code, detail).source(error)
}

/// The same for metadata and other requests of our own, where a time-out means that no broker could be reached.
pub fn unreachable(error: KafkaError) -> Error {
    let error = from_kafka(error);
    if error.code() == Code::DeadlineExceeded {
        return Error::new(Code::BrokerUnavailable, UNAVAILABLE).source(error);
    }
    error
}

#[cfg(test)]
mod tests {
    use rdkafka::types::RDKafkaRespErr;

    use super::*;

    /// The status that each of librdkafka's codes ends in. What is not named passes, and is 503.
    fn expected(code: RDKafkaErrorCode) -> u16 {
        use RDKafkaErrorCode as K;
        match code {
            K::InvalidTopic | K::InvalidGroupId | K::InvalidPartitions | K::InvalidConfig | K::PolicyViolation => 400,
            K::TopicAuthorizationFailed
            | K::GroupAuthorizationFailed
            | K::ClusterAuthorizationFailed
            | K::TransactionalIdAuthorizationFailed
            | K::DelegationTokenAuthorizationFailed
            | K::TopicDeletionDisabled => 403,
            K::UnknownTopic | K::UnknownTopicOrPartition | K::UnknownTopicId | K::UnknownPartition => 404,
            K::TopicAlreadyExists
            | K::UnknownMemberId
            | K::IllegalGeneration
            | K::RebalanceInProgress
            | K::InconsistentGroupProtocol
            | K::NonEmptyGroup
            | K::GroupMaxSizeReached
            | K::GroupSubscribedToTopic
            | K::FencedInstanceId
            | K::UnreleasedInstanceId
            | K::FencedMemberEpoch
            | K::StaleMemberEpoch => 409,
            K::MessageSizeTooLarge | K::MessageBatchTooLarge => 413,
            K::InvalidRecord | K::InvalidTimestamp | K::InvalidMessage => 422,
            K::ThrottlingQuotaExceeded => 429,
            K::MessageTimedOut
            | K::OperationTimedOut
            | K::RequestTimedOut
            | K::TimedOutQueue
            | K::PurgeQueue
            | K::PurgeInflight => 504,
            K::BadMessage
            | K::BadCompression
            | K::Fail
            | K::CriticalSystemResource
            | K::PartitionEOF
            | K::FileSystem
            | K::InvalidArgument
            | K::UnknownGroup
            | K::ExistingSubscription
            | K::AssignPartitions
            | K::RevokePartitions
            | K::State
            | K::UnknownProtocol
            | K::NotImplemented
            | K::NoOffset
            | K::UnsupportedFeature
            | K::KeySerialization
            | K::ValueSerialization
            | K::KeyDeserialization
            | K::ValueDeserialization
            | K::ReadOnly
            | K::NoEnt
            | K::Underflow
            | K::InvalidType
            | K::NotConfigured
            | K::Application
            | K::Noop
            | K::Unknown
            | K::NoError
            | K::InvalidMessageSize
            | K::OffsetMetadataTooLarge
            | K::InvalidRequiredAcks
            | K::InvalidSessionTimeout
            | K::InvalidCommitOffsetSize
            | K::UnsupportedVersion
            | K::InvalidReplicaAssignment
            | K::InvalidRequest
            | K::UnsupportedForMessageFormat
            | K::InvalidTransactionTimeout
            | K::SecurityDisabled
            | K::LogDirNotFound
            | K::DelegationTokenAuthDisabled
            | K::DelegationTokenNotFound
            | K::DelegationTokenOwnerMismatch
            | K::DelegationTokenRequestNotAllowed
            | K::InvalidPrincipalType
            | K::UnsupportedCompressionType
            | K::ElectionNotNeeded
            | K::NoReassignmentInProgress
            | K::ResourceNotFound
            | K::DuplicateResource
            | K::UnacceptableCredential
            | K::InconsistentVoterSet
            | K::InvalidUpdateVersion
            | K::FeatureUpdateFailed
            | K::PrincipalDeserializationFailure
            | K::UnsupportedAssignor
            | K::UnknownSubscriptionId
            | K::TelemetryTooLarge => 500,
            _ => 503,
        }
    }

    #[test]
    fn every_code_has_its_status() {
        // A librdkafka with more codes fails here, since a code that is not named is 500: somebody has to decide.
        for number in (-199..=-101).chain(-1..=200) {
            let Ok(error) = RDKafkaRespErr::try_from(number) else { continue };
            let code = RDKafkaErrorCode::from(error);
            if code == RDKafkaErrorCode::EndAll {
                continue; // how many there are, and no error
            }
            assert_eq!(classify(code).0.status(), expected(code), "{code:?}");
        }
    }

    #[test]
    fn what_has_no_code_is_ours_but_for_a_client_that_went_away() {
        assert_eq!(from_kafka(KafkaError::Canceled).code(), Code::BrokerUnavailable);
        assert_eq!(from_kafka(KafkaError::AdminOp(RDKafkaErrorCode::UnknownTopic)).code(), Code::TopicNotFound);
        assert_eq!(from_kafka(KafkaError::ClientCreation("x".into())).code(), Code::Internal);
    }

    #[test]
    fn a_login_of_ours_that_fails_is_503_and_an_acl_403() {
        assert_eq!(classify(RDKafkaErrorCode::Authentication).0, Code::BrokerUnavailable);
        assert_eq!(classify(RDKafkaErrorCode::TopicAuthorizationFailed).0, Code::TopicForbidden);
        assert_eq!(classify(RDKafkaErrorCode::ClusterAuthorizationFailed).0, Code::Forbidden);
    }

    #[test]
    fn no_detail_names_a_broker() {
        let error = from_kafka(KafkaError::MessageProduction(RDKafkaErrorCode::BrokerTransportFailure));
        assert_eq!(error.code(), Code::BrokerUnavailable);
        assert!(error.chain().len() > 1 && !error.detail().contains("Transport"));
    }
}
