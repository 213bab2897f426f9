//! librdkafka's errors, classed once.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::errors::{Code, Error};

/// What an error of Kafka's is to the caller, and what its detail says.
///
/// Everything that is not named here is a fault of ours or of the cluster's that no retry of the same call mends: 500.
pub fn classify(code: RDKafkaErrorCode) -> (Code, &'static str) {
    use RDKafkaErrorCode as K;
    match code {
        K::UnknownTopic | K::UnknownTopicOrPartition | K::UnknownTopicId => {
            (Code::TopicNotFound, "The topic does not exist")
        }
        K::UnknownPartition => (Code::PartitionNotFound, "The partition does not exist"),
        K::InvalidTopic => (Code::InvalidParameter, "topic: Kafka refuses this name"),
        K::MessageSizeTooLarge | K::InvalidMessageSize | K::MessageBatchTooLarge => {
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
        | K::DelegationTokenAuthorizationFailed => {
            (Code::Forbidden, "Kafka's own access control does not let the gateway do this")
        }
        K::ThrottlingQuotaExceeded => (Code::Throttled, "Kafka asks for a slower pace"),
        K::MessageTimedOut | K::OperationTimedOut | K::RequestTimedOut | K::TimedOutQueue => {
            (Code::DeadlineExceeded, "Kafka did not answer in time")
        }
        K::BrokerTransportFailure
        | K::AllBrokersDown
        | K::Resolve
        | K::BrokerNotAvailable
        | K::LeaderNotAvailable
        | K::NotLeaderForPartition
        | K::ReplicaNotAvailable
        | K::PreferredLeaderNotAvailable
        | K::NetworkException
        | K::NotEnoughReplicas
        | K::NotEnoughReplicasAfterAppend
        | K::CoordinatorNotAvailable
        | K::CoordinatorLoadInProgress
        | K::NotCoordinator
        | K::WaitingForCoordinator
        | K::UnstableOffsetCommit
        | K::ConcurrentTransactions
        | K::KafkaStorageError
        | K::Authentication
        | K::SaslAuthenticationFailed
        | K::SSL
        | K::QueueFull
        | K::PurgeQueue
        | K::UnknownBroker
        | K::RebootstrapRequired
        | K::NotController
        | K::EligibleLeadersNotAvailable
        | K::FencedLeaderEpoch
        | K::UnknownLeaderEpoch
        | K::OffsetNotAvailable => (Code::BrokerUnavailable, "Kafka cannot be reached, or cannot do this just now"),
        _ => (Code::Internal, "The request could not be completed"),
    }
}

/// Makes the public error of a Kafka error, with the Kafka error as its cause.
pub fn from_kafka(error: KafkaError) -> Error {
    let (code, detail) = match error.rdkafka_error_code() {
        Some(code) => classify(code),
        None => (Code::Internal, "The request could not be completed"),
    };
    Error::new(code, detail).source(error)
}

/// The same for metadata and other requests of our own, where a time-out means that no broker could be reached.
pub fn unreachable(error: KafkaError) -> Error {
    let error = from_kafka(error);
    if error.code() == Code::DeadlineExceeded {
        return Error::new(Code::BrokerUnavailable, "Kafka cannot be reached, or cannot do this just now")
            .source(error);
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

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
