import time, threading
def test_follow(rabbitmq_url, redis_url):
    from taskq import TaskQ, codecs
    from taskq.message import Message
    from taskq.brokers.base import Outgoing
    from taskq.testing import running_worker
    app = TaskQ("f", broker=rabbitmq_url, results=redis_url, publish_timeout_s=2)
    @app.task(name="ok", max_retries=1)
    def ok(x=1): return 1
    def raw(i, q): return Outgoing("default", Message("ok", i, codecs.dumps([[],{},{"chain":[{"task":"ok","options":{"queue":q}}]}])))
    with app, running_worker(app):
        for i, q in [("a","amq.nope"),("b","bad name"),("c","x"*199),("d","taskq.dead")]:
            print(i, app.broker.publish([raw(i,q)],5))
        t=time.monotonic()
        for i in "abcd":
            try: print(i, app.result(i).get(timeout=5))
            except Exception as e: print(i, repr(e)[:200])
        for n in range(3):
            try: print("alive", ok.delay().get(timeout=5), time.monotonic()-t)
            except Exception as e: print("DEAD?", e)
        print(app.broker.depths(["default","taskq.dead"]))
    assert 0
