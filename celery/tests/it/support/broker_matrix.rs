//! One test on several brokers: [`for_each_broker`].

/// Makes a test of each function (an async function that takes a
/// [`Setup`](super::Setup)) on each broker of its row. A broker is a constructor
/// of `Setup`: `redis`; `rabbitmq`, `quorum` and `native_delay` with results on
/// Redis; `rpc`. The tests are named `function::broker`.
macro_rules! for_each_broker {
    ($($test:ident: $($broker:ident),+;)+) => {
        $(
            mod $test {
                $($crate::support::broker_test!($broker, $test);)+
            }
        )+
    };
}

macro_rules! broker_test {
    (redis, $test:ident) => {
        $crate::support::broker_test!(feature = "redis", redis, $test);
    };
    (rabbitmq, $test:ident) => {
        $crate::support::broker_test!(feature = "amqp", rabbitmq, $test);
    };
    (quorum, $test:ident) => {
        $crate::support::broker_test!(feature = "amqp", quorum, $test);
    };
    (native_delay, $test:ident) => {
        $crate::support::broker_test!(feature = "amqp", native_delay, $test);
    };
    (rpc, $test:ident) => {
        $crate::support::broker_test!(feature = "rpc", rpc, $test);
    };
    ($feature:meta, $broker:ident, $test:ident) => {
        #[cfg($feature)]
        #[tokio::test(flavor = "multi_thread")]
        #[ignore = "needs servers and Python Celery; run cargo xtask test"]
        async fn $broker() {
            super::$test($crate::support::Setup::$broker()).await;
        }
    };
}

pub(crate) use {broker_test, for_each_broker};
