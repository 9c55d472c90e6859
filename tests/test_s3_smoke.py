import logging

from remote_logging import RemoteHandler

from .support import Bucket, lines_of


def test_records_reach_s3(bucket: Bucket) -> None:
    handler = RemoteHandler(bucket.url(), storage_options=bucket.options)
    logger = logging.Logger("test")
    logger.addHandler(handler)
    for number in range(10):
        logger.info("line %d", number)
    assert handler.flush()
    assert bucket.read() == lines_of("line", 10)
    handler.close()
