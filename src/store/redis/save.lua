-- Saves checkpoints, all in one step, and none of them backwards.
--
-- ARGV  shard, checkpoint, shard, checkpoint, …
--
-- Running it twice changes nothing.

return run(function()
  read_format()
  for index = 1, #ARGV, 2 do
    advance(ARGV[index], parse(ARGV[index + 1]))
  end
end, function()
  write_format()
  write_places()
end)
