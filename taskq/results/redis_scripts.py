"""The Lua scripts of the Redis store; each is one step that nobody can come between."""

import hashlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script and the name that Redis caches it under.

    Attributes:
        text: Lua source.
        sha: Its SHA-1 in hex.
    """

    text: str
    sha: str

    def cached(self, keys: list[str], arguments: list[Any]) -> tuple[Any, ...]:
        """Return the command that runs it where Redis knows it."""
        return ("EVALSHA", self.sha, len(keys), *keys, *arguments)

    def whole(self, keys: list[str], arguments: list[Any]) -> tuple[Any, ...]:
        """Return the command that runs it and makes it known."""
        return ("EVAL", self.text, len(keys), *keys, *arguments)


def make_script(text: str) -> Script:
    """Return a script with the name that Redis will cache it under."""
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


# ARGV: whether the batch may have been applied already, then record and TTL of each key.
# Ranks are compared as numbers: Lua compares strings by the server's locale.
# A key may come twice in a batch: `latest` is what the batch itself has written to it.
STORE = make_script("""
local found = redis.call('MGET', unpack(KEYS))
local again = ARGV[1] == '1'
local latest = {}
local taken = {}
for i, key in ipairs(KEYS) do
  local record = ARGV[2 * i]
  local old = latest[key] or found[i]
  local take = true
  if old and #old >= 5 then
    if string.find('SFCE', string.sub(old, 1, 1), 1, true)
        or struct.unpack('>I4', record, 2) < struct.unpack('>I4', old, 2) then
      take = again and old == record
    end
  end
  if take then
    redis.call('SET', key, record, 'EX', ARGV[2 * i + 1])
    latest[key] = record
    if string.find('SFCE', string.sub(record, 1, 1), 1, true) then
      redis.call('PUBLISH', key, '')
    end
  end
  taken[i] = take and '1' or '0'
end
return table.concat(taken)
""")

# ARGV: the record of PENDING, TTL.
MARK = make_script("""
for _, key in ipairs(KEYS) do
  redis.call('SET', key, ARGV[1], 'EX', ARGV[2], 'NX')
end
return #KEYS
""")

# ARGV: TTL, by how much.
COUNT = make_script("""
local counts = {}
for i, key in ipairs(KEYS) do
  counts[i] = redis.call('INCRBY', key, ARGV[2])
  redis.call('EXPIRE', key, ARGV[1])
end
return counts
""")

# ARGV: the record of CANCELLED, TTL. Answers with the first byte of each record that was there.
CANCEL = make_script("""
local found = redis.call('MGET', unpack(KEYS))
local before = {}
for i, key in ipairs(KEYS) do
  local old = found[i]
  before[i] = old and string.sub(old, 1, 1) or ''
  if old and not string.find('SFCE', before[i], 1, true) then
    local ttl_s = math.max(tonumber(ARGV[2]), redis.call('TTL', key))
    redis.call('SET', key, ARGV[1], 'EX', ttl_s)
    redis.call('PUBLISH', key, '')
  end
end
return before
""")

# KEYS: rules by number, rules by their end. ARGV: the rule, its end and now in epoch ms.
# A number is the time in microseconds: it grows also after the server lost what it held, so that
# no worker takes a new rule for one that it knows. Sixteen digits stand before each rule.
RULE = make_script("""
for _, old in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[3], 'LIMIT', 0, 100)) do
  redis.call('ZREM', KEYS[1], old)
  redis.call('ZREM', KEYS[2], old)
end
local time = redis.call('TIME')
local number = time[1] * 1000000 + time[2]
local newest = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if newest[2] then
  number = math.max(number, tonumber(newest[2]) + 1)
end
local text = string.format('%016.0f', number)
redis.call('ZADD', KEYS[1], text, text .. ARGV[1])
redis.call('ZADD', KEYS[2], ARGV[2], text .. ARGV[1])
local last = redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')
local ends = string.format('%.0f', tonumber(last[2]))
redis.call('PEXPIREAT', KEYS[1], ends)
redis.call('PEXPIREAT', KEYS[2], ends)
return text
""")
