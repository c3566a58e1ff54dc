"""The Lua scripts of the schedules in Redis; each is one step that nobody can come between.

Keys, in this order everywhere: definitions (hash), states (hash: cursor, queued, fired, skipped,
missed, last id), pauses (hash), open claims (hash: task id to token), declared names (set), changes
(sorted set: name to version), version, lease, tokens, epoch, how far leaders are.
"""

import hashlib
from typing import Final

from taskq.results.redis_scripts import Script

KEYS: Final = (
    "definitions",
    "states",
    "pauses",
    "claims",
    "declared",
    "changes",
    "version",
    "lease",
    "tokens",
    "epoch",
    "done",
)

# What a hand may have broken: a state counts as new, from the moment that is given; a counter goes
# on from the seconds since 1970, which are above all that it has counted; a lease that would never
# end is free.
_HEAD: Final = """
local DEF, STATE, PAUSE, CLAIM, DECLARED, CHANGES = unpack(KEYS, 1, 6)
local VERSION, LEASE, TOKENS, EPOCH, DONE = unpack(KEYS, 7, 11)

local function int(number)
  return string.format('%.0f', number)
end

local function read(name)
  local state = redis.call('HGET', STATE, name)
  local pattern = '^(%d+):(%d+):(%d+):(%d+):(%d+):(.*)$'
  local c, q, f, s, m, last = string.match(state or '', pattern)
  if not c or tonumber(c) > 253402300799999 or tonumber(q) > 253402300799999 then
    return nil
  end
  return {tonumber(c), tonumber(q), tonumber(f), tonumber(s), tonumber(m), last}
end

local function number(key)
  local text = redis.call('GET', key) or '0'
  if #text > 15 or not string.match(text, '^%d+$') then
    text = redis.call('TIME')[1]
    redis.call('SET', key, text)
  end
  return text
end

local function bump(key)
  number(key)
  return redis.call('INCR', key)
end

local function write(name, s)
  local text = int(s[1]) .. ':' .. int(s[2]) .. ':' .. int(s[3]) .. ':' .. int(s[4]) .. ':'
  redis.call('HSET', STATE, name, text .. int(s[5]) .. ':' .. s[6])
end

local function touch(name)
  redis.call('ZADD', CHANGES, bump(VERSION), name)
end

local function when(text)
  return string.match(text, '^[^\\n]*')
end

local function define(name, text, now)
  local old = redis.call('HGET', DEF, name)
  if old == text then
    return 'same'
  end
  redis.call('HSET', DEF, name, text)
  local state = read(name)
  if not old or not state then
    write(name, {now, 0, 0, 0, 0, ''})
    redis.call('HDEL', PAUSE, name)
  elseif when(old) ~= when(text) and state[1] < now then
    state[1] = now
    write(name, state)
  end
  touch(name)
  return old and 'changed' or 'added'
end

local function drop(name)
  redis.call('HDEL', STATE, name)
  redis.call('HDEL', PAUSE, name)
  redis.call('SREM', DECLARED, name)
  if redis.call('HDEL', DEF, name) == 0 then
    return 0
  end
  touch(name)
  return 1
end
"""


def _script(body: str) -> Script:
    text = _HEAD + body
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


# ARGV: holder, token, ttl in ms, whether to take a free lease, how far the leader is.
BEAT: Final = _script("""
local holder, token = ARGV[1], ARGV[2]
local lease = redis.call('GET', LEASE)
local left = redis.call('PTTL', LEASE)
if left < 0 or left > 3600000 then
  lease = false
end
local mine = token ~= '0' and lease == token .. ' ' .. holder
if mine then
  redis.call('PEXPIRE', LEASE, ARGV[3])
elseif not lease and ARGV[4] == '1' then
  token = int(bump(TOKENS))
  lease = token .. ' ' .. holder
  redis.call('SET', LEASE, lease, 'PX', ARGV[3])
  mine = true
end
local time = redis.call('TIME')
if mine and not redis.call('GET', EPOCH) then
  redis.call('SET', EPOCH, lease .. ' ' .. time[1] .. '.' .. time[2])
end
local version = number(VERSION)
local epoch = redis.call('GET', EPOCH) or ''
local done = redis.call('GET', DONE) or ''
done = #done <= 15 and string.match(done, '^%d+$') and tonumber(done) or 0
if mine and tonumber(ARGV[5]) > done then
  done = tonumber(ARGV[5])
  redis.call('SET', DONE, int(done))
end
return {mine and token or '0', lease or '', time[1], time[2], version, epoch, int(done)}
""")

# ARGV: holder, token.
RELEASE: Final = _script("""
if redis.call('GET', LEASE) == ARGV[2] .. ' ' .. ARGV[1] then
  redis.call('DEL', LEASE)
end
return 1
""")

# ARGV: now, then name and definition of each.
DECLARE: Final = _script("""
local now = tonumber(ARGV[1])
local wanted = {}
local done = {}
for i = 2, #ARGV, 2 do
  local name = ARGV[i]
  wanted[name] = true
  redis.call('SADD', DECLARED, name)
  local what = define(name, ARGV[i + 1], now)
  if what ~= 'same' then
    done[#done + 1] = what
    done[#done + 1] = name
  end
end
for _, name in ipairs(redis.call('SMEMBERS', DECLARED)) do
  if not wanted[name] then
    drop(name)
    done[#done + 1] = 'removed'
    done[#done + 1] = name
  end
end
return done
""")

# ARGV: name, definition, now, whether to replace.
PUT: Final = _script("""
if ARGV[4] ~= '1' and redis.call('HEXISTS', DEF, ARGV[1]) == 1 then
  return 0
end
redis.call('SREM', DECLARED, ARGV[1])
define(ARGV[1], ARGV[2], tonumber(ARGV[3]))
return 1
""")

# ARGV: name.
REMOVE: Final = _script("return drop(ARGV[1])")

# ARGV: name, note, now.
PAUSE: Final = _script("""
local name = ARGV[1]
if redis.call('HEXISTS', DEF, name) == 0 then
  return 0
end
if ARGV[2] ~= '' then
  redis.call('HSET', PAUSE, name, ARGV[2])
elseif redis.call('HDEL', PAUSE, name) == 1 then
  local state = read(name) or {0, 0, 0, 0, 0, ''}
  state[1] = math.max(state[1], tonumber(ARGV[3]))
  write(name, state)
end
touch(name)
return 1
""")

# ARGV: of each: name, definition, pause, state, whether it was declared.
RESTORE: Final = _script("""
for i = 1, #ARGV, 5 do
  local name, state = ARGV[i], read(ARGV[i])
  if redis.call('HSETNX', DEF, name, ARGV[i + 1]) == 1 then
    if ARGV[i + 2] ~= '' then
      redis.call('HSET', PAUSE, name, ARGV[i + 2])
    end
    if ARGV[i + 4] == '1' then
      redis.call('SADD', DECLARED, name)
    end
  end
  redis.call('HSET', STATE, name, ARGV[i + 3])
  local known = read(name)
  if state and state[1] > known[1] then
    write(name, state)
  end
  touch(name)
end
return 1
""")

# ARGV: holder, token, then name, due, task id of each.
CLAIM: Final = _script("""
local token = ARGV[2]
if redis.call('GET', LEASE) ~= token .. ' ' .. ARGV[1] then
  return false
end
local found = {}
for i = 3, #ARGV, 3 do
  local state = read(ARGV[i])
  local due, id = tonumber(ARGV[i + 1]), ARGV[i + 2]
  local other = redis.call('HGET', CLAIM, id)
  if other then
    found[#found + 1] = other == token and 'fresh' or 'open'
    redis.call('HSET', CLAIM, id, token)
  elseif state and due <= state[1] and due ~= state[2] then
    found[#found + 1] = 'done'
  else
    redis.call('HSET', CLAIM, id, token)
    found[#found + 1] = 'fresh'
  end
end
return found
""")

# ARGV: of each: name, due, fired id, skipped, missed, whether queued, settled id.
SETTLE: Final = _script("""
for i = 1, #ARGV, 7 do
  local name, due, fired = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2]
  local state = read(name)
  if ARGV[i + 6] ~= '' then
    redis.call('HDEL', CLAIM, ARGV[i + 6])
  end
  local ended = fired ~= '' and redis.call('HDEL', CLAIM, fired) == 1
  if state then
    local fresh = due > state[1]
    if fired ~= '' then
      if ended or fresh then
        state[3] = state[3] + 1
        state[6] = fired
      end
      if due == state[2] then
        state[2] = 0
      end
    end
    if fresh then
      state[1] = due
      state[4] = state[4] + tonumber(ARGV[i + 3])
      state[5] = state[5] + tonumber(ARGV[i + 4])
      if ARGV[i + 5] == '1' then
        state[2] = due
      end
    elseif due == state[2] and tonumber(ARGV[i + 3]) > 0 then
      state[4] = state[4] + tonumber(ARGV[i + 3])
      state[2] = 0
    end
    write(name, state)
  end
end
return 1
""")

# ARGV: version. Names that are gone are forgotten when all is asked for.
CHANGED: Final = _script("""
local since = tonumber(ARGV[1])
local names
if since == 0 then
  names = redis.call('HKEYS', DEF)
else
  names = redis.call('ZRANGEBYSCORE', CHANGES, '(' .. ARGV[1], '+inf')
end
return {number(VERSION), names}
""")
